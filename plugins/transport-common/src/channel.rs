//! Channels, and the state that a link's channels share.

use crate::conn::{Conn, Incoming, RecvError};
use crate::fault::Fault;
use crate::wire::is_name;
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, LinkAbort, PluginError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::SockRef;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// The channel that the connection of a new link carries.
pub const CONTROL: &str = "control";

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
    #[error("The connection to the other host was cut")]
    Cut,
    #[error("The connection to the other host broke")]
    Broken(#[source] io::Error),
    #[error("The connection to the other host cannot be trusted any more")]
    Fault(#[source] Fault),
}

impl From<ChannelError> for PluginError {
    fn from(error: ChannelError) -> PluginError {
        PluginError::new(ErrorCode::PeerLost, error)
    }
}

/// Prepares a connection to carry the channel `name`.
pub(crate) fn tune(conn: &mut Conn, name: &str) -> io::Result<()> {
    conn.become_channel()?;
    if name == CONTROL {
        SockRef::from(conn.stream()).set_priority(CONTROL_PRIORITY)?;
    }
    Ok(())
}

/// What the channels of one link share: the way to end all of them.
pub struct LinkState {
    aborted: AtomicBool,
    /// Readable once aborted: wakes a dial that polls.
    wake: OwnedFd,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Channels in use. Weak, so that a connection ends when both its ends are dropped.
    open: Vec<Weak<Conn>>,
    /// Connections whose channel is not opened yet.
    waiting: HashMap<String, Conn>,
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

    /// Whether it was ended on this side.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Readable once the link is aborted.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether a connection for the channel `name` would be taken.
    pub(crate) fn expects(&self, name: &str) -> bool {
        is_name(name) && !self.is_aborted() && !self.lock().names.contains(name)
    }

    /// Leaves a connection for the `open` of its channel.
    pub(crate) fn leave(&self, name: String, conn: Conn) {
        let mut inner = self.lock();
        if !self.is_aborted() && inner.names.insert(name.clone()) {
            inner.waiting.insert(name, conn);
            self.changed.notify_all();
        }
    }

    /// Takes the connection left for `name`, if there is one.
    pub(crate) fn take(&self, name: &str) -> Option<Conn> {
        self.lock().waiting.remove(name)
    }

    /// Waits until a connection is left for `name`; `None` when none came before `deadline` or the link was aborted.
    pub(crate) fn wait(&self, name: &str, deadline: Instant) -> Option<Conn> {
        let inner = self.lock();
        let limit = deadline.saturating_duration_since(Instant::now());
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(inner, limit, |i| !i.waiting.contains_key(name) && !self.is_aborted())
            .unwrap_or_else(PoisonError::into_inner);
        inner.waiting.remove(name)
    }

    /// Makes both ends of a channel out of a connection.
    pub(crate) fn adopt(self: &Arc<Self>, conn: Conn) -> Result<(Tx, Rx), ChannelError> {
        let conn = Arc::new(conn);
        let mut inner = self.lock();
        if self.is_aborted() {
            return Err(ChannelError::Aborted);
        }
        inner.open.retain(|c| c.strong_count() > 0);
        inner.open.push(Arc::downgrade(&conn));
        drop(inner);
        Ok((
            Tx { conn: Arc::clone(&conn), link: Arc::clone(self), sealed: Vec::new() },
            Rx { conn, link: Arc::clone(self), incoming: Incoming::default() },
        ))
    }
}

impl LinkAbort for LinkState {
    fn abort(&self) {
        let mut inner = self.lock();
        self.aborted.store(true, Ordering::SeqCst);
        inner.waiting.clear();
        for conn in inner.open.drain(..).filter_map(|c| c.upgrade()) {
            // It fails only for a connection that has ended already.
            let _ = conn.stream().shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
        // It fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The sending end. Dropping it tells the other side that nothing more comes.
pub struct Tx {
    conn: Arc<Conn>,
    link: Arc<LinkState>,
    /// Records on their way to the socket.
    sealed: Vec<u8>,
}

impl Tx {
    fn send_all(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
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
            match self.conn.is_tls() {
                true => self.send_sealed(&mut batch[..used])?,
                false => self.send_batch(&mut batch[..used])?,
            }
        }
    }

    fn send_sealed(&mut self, mut batch: &mut [IoSlice<'_>]) -> Result<(), ChannelError> {
        while !batch.is_empty() {
            self.sealed.clear();
            let taken = self.conn.seal_some(batch, &mut self.sealed).map_err(|e| self.broken(e))?;
            IoSlice::advance_slices(&mut batch, taken);
            self.send_batch(&mut [IoSlice::new(&self.sealed)])?;
        }
        Ok(())
    }

    fn broken(&self, error: io::Error) -> ChannelError {
        match Fault::of(&error) {
            _ if self.link.is_aborted() => ChannelError::Aborted,
            Some(fault) => ChannelError::Fault(fault),
            None => ChannelError::Broken(error),
        }
    }

    fn send_batch(&self, mut batch: &mut [IoSlice<'_>]) -> Result<(), ChannelError> {
        while !batch.is_empty() {
            match sendmsg(self.conn.stream(), batch, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
            {
                Ok(sent) => IoSlice::advance_slices(&mut batch, sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.broken(error.into())),
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

impl Tx {
    /// The channel's connection, for whatever does not read or write.
    pub fn stream(&self) -> &TcpStream {
        self.conn.stream()
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.conn.finish();
    }
}

/// The receiving end.
pub struct Rx {
    conn: Arc<Conn>,
    link: Arc<LinkState>,
    incoming: Incoming,
}

impl Rx {
    fn recv_all(&mut self, mut buf: &mut [u8]) -> Result<(), ChannelError> {
        while !buf.is_empty() {
            let got = self.incoming.recv(&self.conn, buf);
            // A connection that was shut down still hands out what arrived before: the flag decides.
            if self.link.is_aborted() {
                return Err(ChannelError::Aborted);
            }
            match got {
                Ok(n) => buf = &mut buf[n..],
                Err(RecvError::Io(e)) if e.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.ended(error)),
            }
        }
        if self.link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) }
    }
}

impl Rx {
    fn ended(&self, error: RecvError) -> ChannelError {
        match error {
            RecvError::Closed => ChannelError::Closed,
            RecvError::Cut => ChannelError::Cut,
            RecvError::Io(error) => ChannelError::Broken(error),
            RecvError::Fault(fault) => {
                // Nothing that comes can be believed: the sender of this side, and the other host, hear of it so.
                let _ = self.conn.stream().shutdown(Shutdown::Both);
                ChannelError::Fault(fault)
            }
        }
    }
}

impl ChannelRx for Rx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        Ok(self.recv_all(buf)?)
    }
}
