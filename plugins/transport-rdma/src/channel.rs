//! Channels: a queue pair for each direction, so that who sends and who receives share nothing.
//!
//! ```text
//!  Tx                                                     Rx
//!  parts ─ copied ─► own ring ═══ write, how far ═══════► ring ─ copied ─► caller
//!             ▲ completion                                  │ a quarter of the ring, or of the messages, is consumed
//!             └─ room ◄═════════ credit: consumed up to ═══─┘
//! ```
//! Who waits sleeps on four descriptors: completions, the connection manager's events, the channel's TLS connection, which the
//! kernel closes when the other process dies, and the link's end.

use crate::endpoint::{Completion, Endpoint};
use crate::ffi::event;
use crate::ring::{CREDITS, Impossible, Inbox, Outbox, Span};
use crate::wire::Ring;
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, PluginError};
use aventine_transport_common as common;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest message: a copy of so much is not waited for before the device begins.
pub(crate) const MOST: usize = 128 << 10;
/// Longest time that dropping a sending end waits for what was sent.
const LINGER: Duration = Duration::from_secs(2);

/// Why a channel cannot be used.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("The link was ended on this side")]
    Aborted,
    #[error("The other host ended the channel")]
    Closed,
    #[error("The other host's memory is out of reach: {0}")]
    Failed(&'static str),
    #[error("The RDMA device was removed")]
    Removed,
    #[error("The other host does not keep to the rules of transport `rdma`")]
    Impossible(#[from] Impossible),
    #[error("The RDMA device's queue takes no more")]
    Full,
    #[error("The RDMA device failed")]
    Device(#[source] Errno),
}

impl From<ChannelError> for PluginError {
    fn from(error: ChannelError) -> PluginError {
        let code = match error {
            ChannelError::Impossible(_) => ErrorCode::Corrupt,
            ChannelError::Full | ChannelError::Device(_) => ErrorCode::Io,
            ChannelError::Removed => ErrorCode::Unavailable,
            ChannelError::Aborted | ChannelError::Closed | ChannelError::Failed(_) => ErrorCode::PeerLost,
        };
        PluginError::new(code, error)
    }
}

/// What posting a request fails with.
fn refused(error: Errno) -> ChannelError {
    if error == Errno::NOMEM { ChannelError::Full } else { ChannelError::Device(error) }
}

/// A channel's TLS connection, kept until both its halves are gone. Nothing is said on it any more.
pub(crate) struct Tether {
    pub(crate) tx: common::Tx,
    pub(crate) _rx: common::Rx,
    pub(crate) link: Arc<common::LinkState>,
}

/// What both halves do alike.
struct Half {
    endpoint: Endpoint,
    tether: Arc<Tether>,
    /// Why nothing more comes or goes.
    ended: Option<ChannelError>,
}

impl Half {
    fn check(&self) -> Result<(), ChannelError> {
        if self.tether.link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) }
    }

    /// Waits until there may be a completion or the channel has ended, but not beyond `limit`.
    fn sleep(&mut self, limit: Option<Duration>) -> Result<(), ChannelError> {
        let limit = limit.map(|l| Timespec { tv_sec: l.as_secs() as _, tv_nsec: l.subsec_nanos() as _ });
        let mut fds = [
            PollFd::from_borrowed_fd(self.tether.link.wake(), PollFlags::IN),
            PollFd::new(&self.endpoint.completions, PollFlags::IN),
            PollFd::new(&self.endpoint.events, PollFlags::IN),
            PollFd::new(self.tether.tx.stream(), PollFlags::IN | PollFlags::RDHUP),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(ChannelError::Device(error)),
        }
        let [aborted, _, happened, left] = fds.map(|fd| !fd.revents().is_empty());
        if aborted {
            return Err(ChannelError::Aborted);
        }
        if happened {
            self.hear()?;
        }
        if left {
            self.ended.get_or_insert(ChannelError::Closed);
        }
        Ok(())
    }

    /// What the connection manager says.
    fn hear(&mut self) -> Result<(), ChannelError> {
        let failed = |e: std::io::Error| ChannelError::Device(Errno::from_io_error(&e).unwrap_or(Errno::IO));
        while let Some(event) = self.endpoint.events.next().map_err(failed)? {
            match event.kind {
                event::DISCONNECTED => self.ended.get_or_insert(ChannelError::Closed),
                event::DEVICE_REMOVAL => self.ended.get_or_insert(ChannelError::Removed),
                _ => continue,
            };
        }
        Ok(())
    }
}

/// The sending end.
pub(crate) struct Tx {
    half: Half,
    /// The other side's.
    ring: Ring,
    outbox: Outbox,
}

impl Tx {
    pub(crate) fn new(endpoint: Endpoint, ring: Ring, tether: Arc<Tether>) -> Tx {
        let outbox = Outbox::new(endpoint.memory.len(), MOST.min(endpoint.memory.len() / 4));
        Tx { half: Half { endpoint, tether, ended: None }, ring, outbox }
    }

    /// Books what has completed; whether anything has.
    fn book(&mut self) -> Result<bool, ChannelError> {
        let mut any = false;
        while let Some(completion) = self.half.endpoint.next().map_err(ChannelError::Device)? {
            any = true;
            match completion {
                Completion::Wrote(end) => self.outbox.completed(end),
                Completion::Came(told) => {
                    self.outbox.credited(told)?;
                    self.half.endpoint.receive().map_err(refused)?;
                }
                Completion::Failed(why) => {
                    self.half.ended.get_or_insert(ChannelError::Failed(why));
                }
            }
        }
        Ok(any)
    }

    /// Waits for something to book.
    fn wait(&mut self, limit: Option<Duration>) -> Result<(), ChannelError> {
        self.half.endpoint.arm().map_err(ChannelError::Device)?;
        if !self.book()? {
            self.half.sleep(limit)?;
            self.book()?;
        }
        Ok(())
    }

    fn room(&mut self) -> Result<Span, ChannelError> {
        loop {
            if let Some(error) = self.half.ended {
                return Err(error);
            }
            if let Some(span) = self.outbox.room() {
                return Ok(span);
            }
            self.wait(None)?;
        }
    }

    fn send_all(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        // Whether somebody is there, and what the last call left behind.
        self.half.sleep(Some(Duration::ZERO))?;
        self.book()?;
        let mut parts = parts.iter().copied().filter(|part| !part.is_empty());
        let mut part: &[u8] = &[];
        loop {
            let span = self.room()?;
            let mut filled = 0;
            while filled < span.len {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next;
                }
                let (now, later) = part.split_at(part.len().min(span.len - filled));
                self.half.endpoint.memory.put(span.at + filled, now);
                filled += now.len();
                part = later;
            }
            if filled == 0 {
                return Ok(());
            }
            let end = self.outbox.wrote(filled);
            let span = Span { len: filled, ..span };
            self.half.endpoint.write(span, &self.ring, end, end as u32).map_err(refused)?;
            self.book()?;
        }
    }
}

impl ChannelTx for Tx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.half.check()?;
        self.send_all(parts).and_then(|()| self.half.check())?;
        Ok(())
    }
}

impl Drop for Tx {
    /// What was sent arrives, if the other side is there: ending a queue pair takes it back.
    fn drop(&mut self) {
        let until = Instant::now() + LINGER;
        while self.half.ended.is_none() && !self.outbox.is_flushed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(Some(left)).is_err() {
                return;
            }
        }
    }
}

/// The receiving end.
pub(crate) struct Rx {
    half: Half,
    inbox: Inbox,
}

impl Rx {
    pub(crate) fn new(endpoint: Endpoint, tether: Arc<Tether>) -> Rx {
        let inbox = Inbox::new(endpoint.memory.len());
        Rx { half: Half { endpoint, tether, ended: None }, inbox }
    }

    /// Books what has completed; whether anything has.
    fn book(&mut self) -> Result<bool, ChannelError> {
        let mut any = false;
        while let Some(completion) = self.half.endpoint.next().map_err(ChannelError::Device)? {
            any = true;
            match completion {
                Completion::Came(told) => {
                    self.inbox.arrived(told)?;
                    // Before the credit that lets the other side use it.
                    self.half.endpoint.receive().map_err(refused)?;
                }
                Completion::Wrote(_) => {}
                Completion::Failed(why) => {
                    self.half.ended.get_or_insert(ChannelError::Failed(why));
                }
            }
        }
        Ok(any)
    }

    /// Waits for bytes. What had arrived when the other side ended is still handed out.
    fn wait(&mut self) -> Result<(), ChannelError> {
        if self.book()? {
            return self.credit();
        }
        if let Some(error) = self.half.ended {
            return Err(error);
        }
        self.half.endpoint.arm().map_err(ChannelError::Device)?;
        if !self.book()? {
            self.half.sleep(None)?;
        }
        Ok(())
    }

    fn credit(&mut self) -> Result<(), ChannelError> {
        let Some(told) = self.inbox.due() else { return Ok(()) };
        // One that finds no room is sent when others have arrived.
        if self.half.ended.is_some() || self.half.endpoint.writes() == CREDITS {
            return Ok(());
        }
        // A write of nothing needs no place to go to.
        let (nothing, nowhere) = (Span { at: 0, len: 0 }, Ring { address: 0, key: 0, length: 0 });
        self.half.endpoint.write(nothing, &nowhere, u64::from(told), told).map_err(refused)?;
        self.inbox.told();
        Ok(())
    }

    fn recv_all(&mut self, mut buf: &mut [u8]) -> Result<(), ChannelError> {
        while !buf.is_empty() {
            let Some(span) = self.inbox.ready() else {
                self.wait()?;
                continue;
            };
            let len = span.len.min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            self.half.endpoint.memory.get(span.at, now);
            self.inbox.took(len);
            self.credit()?;
            buf = later;
        }
        Ok(())
    }
}

impl ChannelRx for Rx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.half.check()?;
        self.recv_all(buf).and_then(|()| self.half.check())?;
        Ok(())
    }
}
