//! Channels: a queue pair for each direction, so that who sends and who receives share nothing.
//!
//! ```text
//!  Tx                                                     Rx
//!  lent memory ══════ writes, how long ══════════════════► an offered buffer ─► caller          no copy
//!             ◄══════ offer: another buffer ════════════════  free ◄─ dropped ───┘
//!  parts ─ copied ─► own ring ═══ write, how far ═══════► ring ─ copied ─► caller               all else
//!             ▲ completion                                  │ a quarter of the ring, or of the messages, is consumed
//!             └─ room ◄═════════ credit: consumed up to ═══─┘
//! ```
//! What is sent from lent memory is read by the device later: `settle` waits for it. Who waits sleeps on four descriptors: completions,
//! the connection manager's events, the channel's TLS connection, which the kernel closes when the other process dies, and the link's
//! end.
//!
//! Invariant: when a call of a sending end has failed, its device reads no lent memory: nothing was in flight, or the queue pair is
//! gone.

use crate::endpoint::{Completion, Endpoint, PIECES, SILENT, TELLS};
use crate::ffi::{Sge, event};
use crate::lent::{Buffer, DIRECT, Pool, Sources};
use crate::resource::Memory;
use crate::ring::{Impossible, Inbox, MESSAGES, Outbox, Ready, Span, immediate};
use crate::wire::{Ring, Room};
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, LentMemory, PluginError};
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
    // Before the memory that its device may read.
    half: Half,
    /// Once there is lent memory.
    sources: Option<Sources>,
    /// The other side's.
    theirs: Room,
    outbox: Outbox,
    /// Calls of `send`.
    sends: u64,
    /// What the message to be sent is gathered from.
    pieces: Vec<Sge>,
}

impl Tx {
    pub(crate) fn new(endpoint: Endpoint, theirs: Room, tether: Arc<Tether>) -> Tx {
        let most = MOST.min(endpoint.memory.len() / 4);
        let outbox = Outbox::new(endpoint.memory.len(), most, theirs.buffers.count);
        let half = Half { endpoint, tether, ended: None };
        Tx { half, sources: None, theirs, outbox, sends: 0, pieces: Vec::new() }
    }

    /// Books what has completed; whether anything has.
    fn book(&mut self) -> Result<bool, ChannelError> {
        let mut any = false;
        while let Some(completion) = self.half.endpoint.next().map_err(ChannelError::Device)? {
            any = true;
            match completion {
                Completion::Wrote(end) => {
                    self.outbox.completed(end);
                    self.sources.iter_mut().for_each(|sources| sources.read(end));
                }
                Completion::Came(told) => {
                    self.outbox.heard(told)?;
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
        if let Some(error) = self.half.ended {
            return Err(error);
        }
        // Whether somebody is there, and what the last call left behind.
        self.half.sleep(Some(Duration::ZERO))?;
        self.book()?;
        if let [head, body @ ..] = parts
            && let Some(memory) = self.gather(body)?
        {
            self.copy(&[head])?;
            return self.place(body, memory);
        }
        self.copy(parts)
    }

    /// If this goes to a buffer, from where it lies: the memory to be kept until it has gone.
    fn gather(&mut self, body: &[&[u8]]) -> Result<Option<Vec<Arc<Memory>>>, ChannelError> {
        let fits = DIRECT..=self.theirs.buffers.length as usize;
        let len = body.iter().map(|part| part.len()).sum();
        if self.sources.is_none() || self.outbox.offer().is_none() || !fits.contains(&len) {
            return Ok(None);
        }
        self.until(|tx| tx.sources.as_ref().is_none_or(Sources::has_room))?;
        Ok(self.sources.as_mut().and_then(|sources| sources.gather(body, &mut self.pieces)))
    }

    /// Writes what [`Self::gather`] has found.
    fn place(&mut self, body: &[&[u8]], memory: Vec<Arc<Memory>>) -> Result<(), ChannelError> {
        self.room()?;
        let Some(buffer) = self.outbox.offer() else { return Ok(()) };
        let (mut at, key) = (self.theirs.buffers.at(buffer), self.theirs.buffers.key);
        let pieces = std::mem::take(&mut self.pieces);
        let mut requests = pieces.chunks(PIECES).peekable();
        while let Some(request) = requests.next() {
            let (number, told) = match requests.peek() {
                Some(_) => (self.outbox.written(), None),
                None => {
                    let (end, told) = self.outbox.filled(body.iter().map(|part| part.len()).sum());
                    (end, Some(told))
                }
            };
            self.until(|tx| tx.half.endpoint.writes() < MESSAGES + SILENT)?;
            // SAFETY: what the pieces name is borrowed by the caller of `send`, or is notes, and is kept by the sources from its
            // return on, until the requests have completed or the queue pair is gone. Who writes there before that sends it.
            unsafe { self.half.endpoint.gather(request, (at, key), number, told) }.map_err(refused)?;
            at += request.iter().map(|piece| u64::from(piece.length)).sum::<u64>();
        }
        self.pieces = pieces;
        if let Some(sources) = &mut self.sources {
            sources.posted(self.sends, self.outbox.written(), memory);
        }
        Ok(())
    }

    fn settle_up_to(&mut self, send: u64) -> Result<(), ChannelError> {
        self.book()?;
        while !self.sources.as_ref().is_none_or(|sources| sources.is_settled(send)) {
            if let Some(error) = self.half.ended {
                return Err(error);
            }
            self.wait(None)?;
        }
        Ok(())
    }

    /// Nothing of what was sent is read any more.
    fn fail(&mut self, error: ChannelError) -> PluginError {
        if let Some(sources) = &mut self.sources
            && self.half.endpoint.writes() > 0
        {
            self.half.ended.get_or_insert(error);
            self.half.endpoint.end();
            sources.read_all();
        }
        error.into()
    }

    fn until(&mut self, is_so: impl Fn(&Tx) -> bool) -> Result<(), ChannelError> {
        loop {
            if let Some(error) = self.half.ended {
                return Err(error);
            }
            if is_so(self) {
                return Ok(());
            }
            self.wait(None)?;
        }
    }

    /// Sends by way of the ring.
    fn copy(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
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
            self.half.endpoint.write(span, &self.theirs.ring, end, immediate(end)).map_err(refused)?;
            self.book()?;
        }
    }
}

impl ChannelTx for Tx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.sends += 1;
        let sent = self.half.check().and_then(|()| self.send_all(parts)).and_then(|()| self.half.check());
        sent.map_err(|error| self.fail(error))
    }

    fn memory(&mut self, bytes: usize) -> Option<Box<dyn LentMemory>> {
        // Without a buffer over there everything is copied in any case.
        if bytes == 0 || self.theirs.buffers.count == 0 || self.half.ended.is_some() {
            return None;
        }
        if self.sources.is_none() {
            self.sources = Sources::new(&self.half.endpoint);
        }
        self.sources.as_ref()?.lend(&self.half.endpoint, bytes)
    }

    fn settle(&mut self, sends: usize) -> Result<(), PluginError> {
        let up_to = self.sends.saturating_sub(sends as u64);
        let settled = self.half.check().and_then(|()| self.settle_up_to(up_to));
        settled.map_err(|error| self.fail(error))
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
    pool: Option<Arc<Pool>>,
}

impl Rx {
    pub(crate) fn new(endpoint: Endpoint, pool: Option<Arc<Pool>>, tether: Arc<Tether>) -> Rx {
        let buffers = pool.as_ref().map(|pool| pool.buffers()).unwrap_or_default();
        let inbox = Inbox::new(endpoint.memory.len(), buffers.count, buffers.length as usize);
        Rx { half: Half { endpoint, tether, ended: None }, inbox, pool }
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

    /// Tells the sender what it may write.
    fn credit(&mut self) -> Result<(), ChannelError> {
        if let Some(told) = self.inbox.due()
            && self.can_tell()
        {
            self.tell(told)?;
            self.inbox.told();
        }
        while self.inbox.wants_offer() && self.can_tell() {
            let Some(buffer) = self.pool.as_ref().and_then(|pool| pool.take()) else { break };
            let told = self.inbox.offer(buffer);
            self.tell(told)?;
        }
        Ok(())
    }

    /// What finds no room is told when others have arrived.
    fn can_tell(&self) -> bool {
        self.half.ended.is_none() && self.half.endpoint.writes() < TELLS
    }

    fn tell(&mut self, told: u32) -> Result<(), ChannelError> {
        // A write of nothing needs no place to go to.
        let (nothing, nowhere) = (Span { at: 0, len: 0 }, Ring { address: 0, key: 0, length: 0 });
        self.half.endpoint.write(nothing, &nowhere, u64::from(told), told).map_err(refused)
    }

    fn recv_all(&mut self, mut buf: &mut [u8]) -> Result<(), ChannelError> {
        while !buf.is_empty() {
            let Some(ready) = self.inbox.ready() else {
                self.wait()?;
                continue;
            };
            let (Ready::Ring(span) | Ready::Lent(_, span)) = ready;
            let len = span.len.min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            match (ready, &self.pool) {
                (Ready::Lent(buffer, _), Some(pool)) => pool.get(buffer, span.at, now),
                _ => self.half.endpoint.memory.get(span.at, now),
            }
            if let (Some(free), Some(pool)) = (self.inbox.took(len), &self.pool) {
                pool.give(free);
            }
            self.credit()?;
            buf = later;
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<Option<Box<dyn LentMemory>>, ChannelError> {
        let Some(pool) = self.pool.clone().filter(|_| len >= DIRECT) else { return Ok(None) };
        while self.inbox.ready().is_none() {
            self.wait()?;
        }
        let Some(buffer) = self.inbox.take(len) else { return Ok(None) };
        let buffer = Buffer::new(&pool, buffer, len);
        self.credit()?;
        Ok(Some(Box::new(buffer)))
    }
}

impl ChannelRx for Rx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.half.check()?;
        self.recv_all(buf).and_then(|()| self.half.check())?;
        Ok(())
    }

    fn recv_lent(&mut self, len: usize) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
        self.half.check()?;
        let taken = self.take(len)?;
        self.half.check()?;
        Ok(taken)
    }
}
