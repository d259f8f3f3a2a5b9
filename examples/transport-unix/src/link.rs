//! A link and its channels.

use crate::{call, failed, next};
use aventine_api::{Channel, ChannelRx, ChannelTx, ErrorCode, Link, LinkAbort, PluginError};
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

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

/// Where further connections are made, or come.
pub(crate) enum Side {
    Primary(PathBuf),
    Standby(Arc<UnixListener>),
}

pub(crate) struct UnixLink {
    /// Until it is opened.
    control: Option<UnixStream>,
    side: Side,
    number: [u8; 8],
    ends: Arc<Ends>,
}

impl UnixLink {
    pub(crate) fn new(control: UnixStream, side: Side, number: [u8; 8]) -> UnixLink {
        UnixLink { control: Some(control), side, number, ends: Arc::new(Ends(Mutex::new(Some(Vec::new())))) }
    }

    fn socket(&mut self, name: &str, limit: Duration) -> io::Result<UnixStream> {
        let first = call(self.number, name);
        match (&self.side, self.control.take_if(|_| name == "control")) {
            (_, Some(socket)) => Ok(socket),
            (Side::Primary(path), None) => UnixStream::connect(path).and_then(|mut socket| {
                socket.write_all(&first)?;
                Ok(socket)
            }),
            (Side::Standby(door), None) => {
                let end = Instant::now() + limit;
                let mut calls = std::iter::from_fn(|| next(door, end).transpose());
                // Others are left from a link that has ended.
                let own = calls.find(|call| !matches!(call, Ok((_, theirs)) if *theirs != first));
                own.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map(|(socket, _)| socket)
            }
        }
    }
}

impl Link for UnixLink {
    fn open(&mut self, name: &str, _: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let socket = self.socket(name, limit).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => {
                failed(ErrorCode::TimedOut, "the primary did not open the channel in time")(e)
            }
            _ => failed(ErrorCode::PeerLost, "the channel cannot be opened")(e),
        })?;
        let socket = Arc::new(socket);
        self.ends.with(|sockets| sockets.iter_mut().for_each(|s| s.push(Arc::downgrade(&socket))));
        let half = || Box::new(Half { socket: Arc::clone(&socket), ends: Arc::clone(&self.ends) });
        Ok((half(), half()))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.ends) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        format!("the other process (link {})", u64::from_le_bytes(self.number))
    }
}

/// One half of a channel.
struct Half {
    socket: Arc<UnixStream>,
    ends: Arc<Ends>,
}

impl Half {
    fn guard(&self, done: io::Result<()>) -> Result<(), PluginError> {
        // What an ended link's sockets still have in them counts for nothing.
        let alive = self.ends.with(|sockets| sockets.is_some());
        let done = if alive { done } else { Err(io::Error::other("the link was ended on this side")) };
        done.map_err(failed(ErrorCode::PeerLost, "the channel has ended"))
    }
}

impl ChannelTx for Half {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        // Skips empty ones: nothing sent would look like a socket that takes nothing.
        IoSlice::advance_slices(&mut rest, 0);
        let mut done = Ok(());
        while !rest.is_empty() && done.is_ok() {
            done = (&*self.socket).write_vectored(rest).map(|sent| IoSlice::advance_slices(&mut rest, sent));
        }
        self.guard(done)
    }
}

impl ChannelRx for Half {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.guard((&*self.socket).read_exact(buf))
    }
}
