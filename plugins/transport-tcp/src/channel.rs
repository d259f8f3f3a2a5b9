//! Channels, and the state that a link's channels share.

use crate::wire::is_name;
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, LinkAbort, PluginError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::SockRef;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// The channel that the connection of a new link carries.
pub(crate) const CONTROL: &str = "control";

/// Slices handed to the kernel in one call.
const BATCH: usize = 256;

/// The highest priority that needs no privilege: default queueing disciplines send such packets first.
const CONTROL_PRIORITY: u32 = 6;

/// Why a channel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("The link was ended on this side")]
    Aborted,
    #[error("The other host closed the connection")]
    Closed,
    #[error("The connection to the other host broke")]
    Broken(#[source] io::Error),
}

impl From<ChannelError> for PluginError {
    fn from(error: ChannelError) -> PluginError {
        PluginError::new(ErrorCode::PeerLost, error)
    }
}

/// Prepares a connection to carry the channel `name`.
pub(crate) fn tune(stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    if name == CONTROL {
        SockRef::from(stream).set_priority(CONTROL_PRIORITY)?;
    }
    Ok(())
}

/// What the channels of one link share: the way to end all of them.
pub(crate) struct LinkState {
    aborted: AtomicBool,
    /// Readable once aborted: wakes a dial that polls.
    wake: OwnedFd,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Channels in use. Weak, so that a connection ends when both its ends are dropped.
    open: Vec<Weak<TcpStream>>,
    /// Connections whose channel is not opened yet.
    waiting: HashMap<String, TcpStream>,
    /// Every channel that ever came.
    names: HashSet<String>,
}

impl LinkState {
    pub(crate) fn new() -> io::Result<Arc<LinkState>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(LinkState {
            aborted: AtomicBool::new(false),
            wake,
            inner: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Readable once the link is aborted.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether a connection for the channel `name` would be taken.
    pub(crate) fn expects(&self, name: &str) -> bool {
        is_name(name) && !self.is_aborted() && !self.lock().names.contains(name)
    }

    /// Leaves a connection for the `open` of its channel.
    pub(crate) fn leave(&self, name: String, stream: TcpStream) {
        let mut inner = self.lock();
        if !self.is_aborted() && inner.names.insert(name.clone()) {
            inner.waiting.insert(name, stream);
            self.changed.notify_all();
        }
    }

    /// Takes the connection left for `name`, if there is one.
    pub(crate) fn take(&self, name: &str) -> Option<TcpStream> {
        self.lock().waiting.remove(name)
    }

    /// Waits until a connection is left for `name`; `None` when none came before `deadline` or the link was aborted.
    pub(crate) fn wait(&self, name: &str, deadline: Instant) -> Option<TcpStream> {
        let inner = self.lock();
        let limit = deadline.saturating_duration_since(Instant::now());
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(inner, limit, |i| !i.waiting.contains_key(name) && !self.is_aborted())
            .unwrap_or_else(PoisonError::into_inner);
        inner.waiting.remove(name)
    }

    /// Makes both ends of a channel out of a connection.
    pub(crate) fn adopt(self: &Arc<Self>, stream: TcpStream) -> Result<(Tx, Rx), ChannelError> {
        let stream = Arc::new(stream);
        let mut inner = self.lock();
        if self.is_aborted() {
            return Err(ChannelError::Aborted);
        }
        inner.open.retain(|s| s.strong_count() > 0);
        inner.open.push(Arc::downgrade(&stream));
        drop(inner);
        Ok((
            Tx { stream: Arc::clone(&stream), link: Arc::clone(self) },
            Rx { stream, link: Arc::clone(self) },
        ))
    }
}

impl LinkAbort for LinkState {
    fn abort(&self) {
        let mut inner = self.lock();
        self.aborted.store(true, Ordering::SeqCst);
        inner.waiting.clear();
        for stream in inner.open.drain(..).filter_map(|s| s.upgrade()) {
            // It fails only for a connection that has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
        // It fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The sending end. Dropping it tells the other side that nothing more comes.
pub(crate) struct Tx {
    stream: Arc<TcpStream>,
    link: Arc<LinkState>,
}

impl Tx {
    fn send_all(&self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        let mut rest = parts.iter().filter(|p| !p.is_empty());
        loop {
            let mut batch = [IoSlice::new(&[]); BATCH];
            let mut used = 0;
            for (slot, part) in batch.iter_mut().zip(rest.by_ref()) {
                *slot = IoSlice::new(part);
                used += 1;
            }
            if used == 0 {
                return if self.link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) };
            }
            self.send_batch(&mut batch[..used])?;
        }
    }

    fn send_batch(&self, mut batch: &mut [IoSlice<'_>]) -> Result<(), ChannelError> {
        while !batch.is_empty() {
            match sendmsg(&self.stream, batch, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(sent) => IoSlice::advance_slices(&mut batch, sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) if self.link.is_aborted() => return Err(ChannelError::Aborted),
                Err(error) => return Err(ChannelError::Broken(error.into())),
            }
        }
        Ok(())
    }
}

impl ChannelTx for Tx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        if self.link.is_aborted() {
            return Err(ChannelError::Aborted.into());
        }
        Ok(self.send_all(parts)?)
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        // It fails only for a connection that has ended already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// The receiving end.
pub(crate) struct Rx {
    stream: Arc<TcpStream>,
    link: Arc<LinkState>,
}

impl Rx {
    fn recv_all(&self, mut buf: &mut [u8]) -> Result<(), ChannelError> {
        while !buf.is_empty() {
            let got = (&*self.stream).read(buf);
            // A connection that was shut down still hands out what arrived before: the flag decides.
            if self.link.is_aborted() {
                return Err(ChannelError::Aborted);
            }
            match got {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(n) => buf = &mut buf[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(ChannelError::Broken(e)),
            }
        }
        if self.link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) }
    }
}

impl ChannelRx for Rx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        Ok(self.recv_all(buf)?)
    }
}
