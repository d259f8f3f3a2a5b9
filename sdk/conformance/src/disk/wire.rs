//! The channel between a primary's disk and a standby's: in memory, ordered, bounded.

use super::host::lock;
use aventine_api::{ErrorCode, MAX_RECORD, PluginError, RecordHead, RecordRx, RecordTx};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is done to a record on its way; `false`: it is lost.
pub(super) type Harm = Box<dyn FnMut(&mut RecordHead, &mut Vec<u8>) -> bool + Send>;

/// Records that may be under way.
const CAPACITY: usize = 4;

/// A case's hold on the channel, which is cut when it is dropped: nothing waits for it then.
pub(super) struct Wire(Arc<Shared>);

/// What the two ends share.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    records: VecDeque<(RecordHead, Vec<u8>)>,
    /// On the way back. Bounded by what a plugin answers; nothing waits for room there.
    back: VecDeque<(RecordHead, Vec<u8>)>,
    /// Records under way at which the sender waits.
    pub(super) capacity: usize,
    /// Records that the standby may still get.
    pub(super) allowed: usize,
    /// The heads of all that was sent, and the longest payload.
    pub(super) sent: Vec<RecordHead>,
    pub(super) longest: usize,
    /// The head of what the standby got last.
    pub(super) got: Option<RecordHead>,
    /// The standby waits, and has dealt with all that it got.
    waits: bool,
    /// The primary waits for room.
    pub(super) full: bool,
    pub(super) harm: Option<Harm>,
    /// The primary sends nothing more.
    ended: bool,
    cut: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("The channel was cut")]
struct Cut;

fn lost() -> PluginError {
    PluginError::new(ErrorCode::PeerLost, Cut)
}

impl Wire {
    pub(super) fn new() -> Wire {
        let state = State {
            records: VecDeque::new(),
            back: VecDeque::new(),
            capacity: CAPACITY,
            allowed: usize::MAX,
            sent: Vec::new(),
            longest: 0,
            got: None,
            waits: false,
            full: false,
            harm: None,
            ended: false,
            cut: false,
        };
        Wire(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    pub(super) fn ends(&self) -> (Box<dyn RecordTx>, Box<dyn RecordRx>) {
        (Box::new(Sending(Arc::clone(&self.0))), Box::new(Receiving(Arc::clone(&self.0))))
    }

    /// The way back: the primary's end and the standby's.
    pub(super) fn back(&self) -> (Box<dyn RecordRx>, Box<dyn RecordTx>) {
        (Box::new(Back(Arc::clone(&self.0))), Box::new(Back(Arc::clone(&self.0))))
    }
}

impl Deref for Wire {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    pub(super) fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let answer = f(&mut lock(&self.state));
        self.changed.notify_all();
        answer
    }

    /// Nothing arrives any more, and the primary waits as soon as one more record is under way.
    pub(super) fn stop(&self) {
        self.change(|s| (s.allowed, s.capacity) = (0, 1));
    }

    /// Everything arrives again.
    pub(super) fn go_on(&self) {
        self.change(|s| (s.allowed, s.capacity) = (usize::MAX, CAPACITY));
    }

    /// Both ends fail from now on; what is under way is lost.
    pub(super) fn cut(&self) {
        self.change(|s| {
            s.cut = true;
            s.records.clear();
            s.back.clear();
        });
    }

    /// Waits; `false`: not within `patience`.
    pub(super) fn wait(&self, patience: Duration, is: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.state), patience, |s| !is(s));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits until the primary has sent more than the first `sent` records, and the standby has dealt with them.
    pub(super) fn pass(&self, sent: usize, patience: Duration) -> bool {
        self.wait(patience, |s| s.cut || s.full || s.sent.len() > sent) && self.settle(patience)
    }

    /// Records sent so far.
    pub(super) fn sent(&self) -> usize {
        lock(&self.state).sent.len()
    }

    /// Waits until the standby has dealt with all that it may get.
    pub(super) fn settle(&self, patience: Duration) -> bool {
        self.wait(patience, |s| s.waits || s.cut)
    }

    fn wait_while(&self, mut is: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(lock(&self.state), |s| !s.cut && is(s));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The primary's end. Once it is dropped the other one gets what is under way, and fails.
struct Sending(Arc<Shared>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.change(|s| s.ended = true);
    }
}

/// The standby's end. Once it is dropped the other one fails.
struct Receiving(Arc<Shared>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl RecordTx for Sending {
    fn send(&mut self, mut head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut payload = parts.concat();
        let wire = &self.0;
        let mut state = wire.wait_while(|s| {
            let full = s.records.len() >= s.capacity;
            if full && !std::mem::replace(&mut s.full, true) {
                wire.changed.notify_all();
            }
            full
        });
        state.full = false;
        if state.cut {
            return Err(lost());
        }
        state.longest = state.longest.max(payload.len());
        state.sent.push(head);
        let arrives = state.harm.as_mut().is_none_or(|harm| harm(&mut head, &mut payload));
        if arrives && payload.len() <= MAX_RECORD {
            state.waits = false;
            state.records.push_back((head, payload));
        }
        wire.changed.notify_all();
        Ok(())
    }
}

impl RecordRx for Receiving {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let wire = &self.0;
        let mut state = wire.wait_while(|s| {
            let none = s.allowed == 0 || (s.records.is_empty() && !s.ended);
            if none && !std::mem::replace(&mut s.waits, true) {
                wire.changed.notify_all();
            }
            none
        });
        let (head, bytes) = state.records.pop_front().ok_or_else(lost)?;
        state.allowed = state.allowed.saturating_sub(usize::from(state.allowed != usize::MAX));
        (state.got, state.waits) = (Some(head), false);
        wire.changed.notify_all();
        drop(state);
        *payload = bytes;
        Ok(head)
    }
}

/// Either end of the way back. That it is dropped says nothing: a plugin need not use it.
struct Back(Arc<Shared>);

impl RecordTx for Back {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let payload = parts.concat();
        let mut state = lock(&self.0.state);
        if state.cut {
            return Err(lost());
        }
        state.longest = state.longest.max(payload.len());
        if payload.len() <= MAX_RECORD {
            state.back.push_back((head, payload));
        }
        self.0.changed.notify_all();
        Ok(())
    }
}

impl RecordRx for Back {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let mut state = self.0.wait_while(|s| s.back.is_empty());
        let (head, bytes) = state.back.pop_front().ok_or_else(lost)?;
        *payload = bytes;
        Ok(head)
    }
}
