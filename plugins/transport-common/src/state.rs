//! What the channels of one link share: the way to end all of them, and the connections that came for them.

use crate::channel::{ChannelError, Rx, Tx};
use crate::conn::Conn;
use crate::traffic::Traffic;
use crate::wire::{Greeting, Refusal};
use aventine_api::LinkAbort;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// The connections of a channel, in the order in which they take their turns.
pub(crate) struct Conns(pub(crate) Vec<Conn>);

impl Conns {
    /// Ends the calls that wait on any of them. It fails only for a connection that has ended already.
    pub(crate) fn shut(&self, how: Shutdown) {
        for conn in &self.0 {
            let _ = conn.stream().shutdown(how);
        }
    }
}

/// Shared by a link, its channels and, on the standby, the door.
pub struct LinkState {
    aborted: AtomicBool,
    /// Readable once aborted: wakes a dial that polls.
    wake: OwnedFd,
    pub(crate) traffic: Traffic,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Channels in use. Weak, so that connections end when both ends of their channel are dropped.
    open: Vec<Weak<Conns>>,
    /// Connections whose channel is not opened yet, each in its place.
    waiting: HashMap<String, Vec<Option<Conn>>>,
    /// Every channel that ever came.
    names: HashSet<String>,
}

impl Inner {
    fn is_whole(&self, name: &str) -> bool {
        self.waiting.get(name).is_some_and(|conns| conns.iter().all(Option::is_some))
    }

    fn take(&mut self, name: &str) -> Option<Vec<Conn>> {
        if !self.is_whole(name) {
            return None;
        }
        self.waiting.remove(name).map(|conns| conns.into_iter().flatten().collect())
    }
}

impl LinkState {
    pub(crate) fn new(traffic: Traffic) -> io::Result<Arc<LinkState>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(LinkState {
            aborted: AtomicBool::new(false),
            wake,
            traffic,
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

    /// How many connections the channel of `greeting` has, if this one would be taken: the first of a new channel, or one that
    /// is missing in a channel that has this many.
    pub(crate) fn expects(&self, greeting: &Greeting) -> Result<u8, Refusal> {
        let Greeting { channel, stream, streams, .. } = greeting;
        let inner = self.lock();
        let slots = inner.waiting.get(channel);
        match (stream, slots) {
            _ if self.is_aborted() => Err(Refusal::Taken),
            (0, _) if !inner.names.contains(channel) => Ok(self.traffic.streams(channel).min(*streams)),
            (1.., Some(slots))
                if slots.len() == usize::from(*streams) && slots[usize::from(*stream)].is_none() =>
            {
                Ok(*streams)
            }
            _ => Err(Refusal::Taken),
        }
    }

    /// Leaves an expected connection, one of `streams`, for the `open` of its channel.
    pub(crate) fn leave(&self, greeting: &Greeting, streams: u8, conn: Conn) {
        let Greeting { channel, stream, .. } = greeting;
        let mut inner = self.lock();
        if self.is_aborted() {
            return;
        }
        if *stream == 0 && inner.names.insert(channel.clone()) {
            let slots = std::iter::repeat_with(|| None).take(streams.into()).collect();
            inner.waiting.insert(channel.clone(), slots);
        }
        let slot = inner.waiting.get_mut(channel).and_then(|slots| slots.get_mut(usize::from(*stream)));
        if let Some(slot @ None) = slot {
            *slot = Some(conn);
            self.changed.notify_all();
        }
    }

    /// Takes the connections left for `name`, if they are there.
    pub(crate) fn take(&self, name: &str) -> Option<Vec<Conn>> {
        self.lock().take(name)
    }

    /// Waits until all connections of `name` are there; `None` when they did not come before `deadline` or the link was
    /// aborted.
    pub(crate) fn wait(&self, name: &str, deadline: Instant) -> Option<Vec<Conn>> {
        let inner = self.lock();
        let limit = deadline.saturating_duration_since(Instant::now());
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(inner, limit, |i| !i.is_whole(name) && !self.is_aborted())
            .unwrap_or_else(PoisonError::into_inner);
        inner.take(name)
    }

    /// Makes both ends of the channel `name` out of its connections.
    pub(crate) fn adopt(self: &Arc<Self>, name: &str, conns: Vec<Conn>) -> Result<(Tx, Rx), ChannelError> {
        let conns = Arc::new(Conns(conns));
        let mut inner = self.lock();
        if self.is_aborted() {
            return Err(ChannelError::Aborted);
        }
        inner.open.retain(|c| c.strong_count() > 0);
        inner.open.push(Arc::downgrade(&conns));
        drop(inner);
        Ok((Tx::new(name, Arc::clone(&conns), self), Rx::new(conns, self)))
    }
}

impl LinkAbort for LinkState {
    fn abort(&self) {
        let mut inner = self.lock();
        self.aborted.store(true, Ordering::SeqCst);
        inner.waiting.clear();
        for conns in inner.open.drain(..).filter_map(|c| c.upgrade()) {
            conns.shut(Shutdown::Both);
        }
        self.changed.notify_all();
        // It fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}
