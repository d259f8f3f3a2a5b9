//! A link, its connections and its channels.

use crate::{LOOK, failed};
use aventine_api::{Channel, ChannelRx, ChannelTx, ErrorCode, Link, LinkAbort, PluginError};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What a connection begins with: the number of its link, then the name of its channel, padded.
#[derive(PartialEq)]
pub(crate) struct Call([u8; 64]);

impl Call {
    pub(crate) fn new(link: u64, name: &str) -> Call {
        let mut bytes = link.to_le_bytes().into_iter().chain(name.bytes());
        Call(std::array::from_fn(|_| bytes.next().unwrap_or(0)))
    }

    pub(crate) fn link(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|at| self.0[at]))
    }

    /// Connects to the standby.
    pub(crate) fn make(&self, path: &Path) -> io::Result<UnixStream> {
        let mut socket = UnixStream::connect(path)?;
        socket.write_all(&self.0).map(|()| socket)
    }
}

/// The next connection and what it begins with; `None` when none came until `end`.
pub(crate) fn next(door: &UnixListener, end: Instant) -> io::Result<Option<(Call, UnixStream)>> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        set_socket_timeout(door, Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
        let (mut call, came) = (Call([0; 64]), door.accept());
        match came {
            Ok((mut socket, _)) => {
                socket.set_read_timeout(Some(LOOK))?;
                match socket.read_exact(&mut call.0).and_then(|()| socket.set_read_timeout(None)) {
                    Ok(()) => return Ok(Some((call, socket))),
                    Err(error) => tracing::debug!(%error, "a stranger was sent away"),
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Makes, or waits for, one more connection of a link.
type More = Box<dyn FnMut(Call, Instant) -> io::Result<UnixStream> + Send>;

pub(crate) struct UnixLink {
    number: u64,
    /// Until it is opened.
    control: Option<UnixStream>,
    more: More,
    ends: Arc<Ends>,
}

impl UnixLink {
    pub(crate) fn new(number: u64, control: UnixStream, more: More) -> UnixLink {
        UnixLink { number, control: Some(control), more, ends: Arc::new(Ends(Mutex::new(Some(Vec::new())))) }
    }
}

impl Link for UnixLink {
    fn open(&mut self, name: &str, _: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let control = self.control.take_if(|_| name == "control").map(Ok);
        let call = || (self.more)(Call::new(self.number, name), Instant::now() + limit);
        let socket = Arc::new(control.unwrap_or_else(call).map_err(|e| match e.kind() {
            ErrorKind::TimedOut => failed(ErrorCode::TimedOut, "the primary has not opened the channel")(e),
            _ => failed(ErrorCode::PeerLost, "the channel cannot be opened")(e),
        })?);
        self.ends.with(|sockets| sockets.iter_mut().for_each(|all| all.push(Arc::downgrade(&socket))));
        let half = || Box::new(Half { socket: Arc::clone(&socket), ends: Arc::clone(&self.ends) });
        half().done(Ok(()))?;
        Ok((half(), half()))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.ends) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        format!("the other process, link {:x}", self.number)
    }
}

/// The sockets of a link's channels; `None` once it was ended. Weak: a channel ends when both its halves are dropped.
struct Ends(Mutex<Option<Vec<Weak<UnixStream>>>>);

impl Ends {
    fn with<T>(&self, f: impl FnOnce(&mut Option<Vec<Weak<UnixStream>>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LinkAbort for Ends {
    fn abort(&self) {
        for socket in self.with(Option::take).iter().flatten().filter_map(Weak::upgrade) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// One half of a channel.
struct Half {
    socket: Arc<UnixStream>,
    ends: Arc<Ends>,
}

impl Half {
    /// What an ended link's sockets still have in them counts for nothing.
    fn done(&self, done: io::Result<()>) -> Result<(), PluginError> {
        let ended = self.ends.with(|sockets| sockets.is_none());
        let done = if ended { Err(io::Error::other("the link was ended on this side")) } else { done };
        done.map_err(failed(ErrorCode::PeerLost, "the channel has ended"))
    }
}

impl ChannelTx for Half {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        // Small parts go together, and nothing is left behind.
        let mut out = BufWriter::new(&*self.socket);
        let sent = parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush());
        // What a failed call has not sent must not be tried again when it is dropped.
        let _ = out.into_parts();
        self.done(sent)
    }
}

impl ChannelRx for Half {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.done((&*self.socket).read_exact(buf))
    }
}
