//! The NBD export of a disk plugin's block device, on a unix socket.
//!
//! ```text
//!  client ── connect ─► handshake ── GO / EXPORT_NAME ─► transmission ── DISC, end of stream, nonsense ─► closed
//!                           └── ABORT, nonsense, silence ─► closed
//! ```
//! Invariants:
//! - Nothing that a client sends is trusted: every length is checked before memory is taken for it, at most
//!   48 MiB are taken for a connection, and nonsense ends that connection alone.
//! - Up to 16 requests of a connection are carried out at the same time, where the device is slow enough for that to pay. A
//!   client that needs two of them in an order waits for the reply to the first.
//! - A reply is sent after the device has carried out the request, never before.
//! - All connections share the one device, so a flush on one covers the writes answered on all of them.
//!
//! Spoken: fixed newstyle with `EXPORT_NAME`, `GO`, `INFO`, `LIST`, `ABORT` and `STRUCTURED_REPLY`; reads, writes,
//! flush, trim and write zeroes, with FUA, NO_HOLE and DF. Other options are answered as unsupported.
#![forbid(unsafe_code)]

mod buffer;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod protocol;
mod socket;
#[cfg(test)]
mod tests;
mod transmission;

use aventine_api::BlockDevice;
use handshake::{HandshakeError, Offer, negotiate};
use rustix::net::{Shutdown, shutdown};
pub use socket::{SocketFile, listen_on};
use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use transmission::{TransmissionError, serve};

/// Most connections at a time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may be silent in the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest export name that the protocol allows, in bytes.
const MAX_NAME: usize = 4096;

/// Why an export could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Somebody answers on the socket.
    #[error("Socket {} is in use: another process exports a disk there. End it, or use another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has the path.
    #[error("{} exists and is not a socket. Move it away, or use another path", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The name is longer than the protocol allows.
    #[error("The export's name has {len} bytes; NBD allows {MAX_NAME}")]
    Name {
        /// Its length.
        len: usize,
    },
    /// The socket could not be made.
    #[error("Socket {} could not be made", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread for it.
    #[error("The export's thread could not be started")]
    Thread(#[source] io::Error),
}

/// A running export. Dropping it closes the socket and every connection, removes the socket file and waits for the
/// requests that the device is carrying out.
pub struct Export {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
    file: SocketFile,
}

struct Shared {
    name: String,
    device: Arc<dyn BlockDevice>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    closed: bool,
    last: u64,
    open: HashMap<u64, UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Export {
    /// Exports `device` as `name` on the unix socket `socket`, which only this user can open. Clients can connect
    /// once this returned. The socket file of a process that is gone is replaced.
    pub fn start(socket: &Path, name: &str, device: Arc<dyn BlockDevice>) -> Result<Export, ExportError> {
        if name.len() > MAX_NAME {
            return Err(ExportError::Name { len: name.len() });
        }
        let (listener, file) = listen_on(socket)?;
        let thread_failed = ExportError::Thread;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            device,
            connections: Mutex::new(Connections::default()),
        });
        let ours = listener.try_clone().map_err(thread_failed)?;
        let accepting = thread::Builder::new()
            .name(format!("nbd {name}"))
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.accept_all(&ours)
            })
            .map_err(thread_failed)?;
        Ok(Export { shared, listener, accepting: Some(accepting), file })
    }

    /// The socket's path, as given.
    pub fn socket(&self) -> &Path {
        &self.file.path
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let threads = {
            let mut connections = self.shared.connections();
            connections.closed = true;
            for stream in connections.open.values() {
                // Fails only for a connection that has just ended by itself.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            std::mem::take(&mut connections.threads)
        };
        if let Err(error) = shutdown(&self.listener, Shutdown::Both) {
            tracing::warn!(%error, "the export's socket could not be shut down");
        }
        for thread in self.accepting.take().into_iter().chain(threads) {
            if thread.join().is_err() {
                tracing::error!(export = self.shared.name, "a thread of the export panicked");
            }
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let accepted = listener.accept();
            if self.connections().closed {
                return;
            }
            match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = self.admit(stream) {
                        tracing::warn!(export = self.name, %error, "a connection could not be served");
                    }
                }
                Err(error) => {
                    tracing::warn!(export = self.name, %error, "no connection could be accepted");
                    // Out of descriptors or memory: trying again at once would only burn a processor.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let ours = stream.try_clone()?;
        let mut connections = self.connections();
        if connections.closed {
            return Ok(());
        }
        if connections.open.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other(format!("{MAX_CONNECTIONS} connections are open already")));
        }
        connections.last += 1;
        let id = connections.last;
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("nbd {} {id}", self.name)).spawn(move || {
            let _open = OpenConnection { shared: &shared, id };
            shared.connection(&stream, id);
        })?;
        connections.open.insert(id, ours);
        connections.threads.retain(|t| !t.is_finished());
        connections.threads.push(thread);
        Ok(())
    }

    fn connection(&self, stream: &UnixStream, id: u64) {
        match self.talk(stream) {
            Ok(()) => tracing::debug!(export = self.name, id, "connection ended"),
            Err(error) if self.connections().closed => {
                tracing::debug!(export = self.name, id, %error, "connection closed");
            }
            Err(error) => tracing::warn!(export = self.name, id, error = chain(&error), "connection ended"),
        }
    }

    fn talk(&self, stream: &UnixStream) -> Result<(), TalkError> {
        stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
        stream.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
        let mut input = BufReader::with_capacity(64 << 10, stream);
        let mut output = stream;
        let offer = Offer { name: &self.name, size: self.device.size() };
        let Some(agreed) = negotiate(&mut input, &mut output, offer)? else { return Ok(()) };
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        serve(&mut input, &mut output, &*self.device, agreed)?;
        Ok(())
    }
}

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
    #[error("The connection could not be set up")]
    Setup(#[from] io::Error),
}

/// Takes a connection off the list when its thread ends, in whatever way, and closes it: the list holds the other
/// descriptor of the same socket.
struct OpenConnection<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.shared.connections().open.remove(&self.id);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
