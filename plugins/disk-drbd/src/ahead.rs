//! The primary's writes that the device does not have: kept by epoch, read through, sent, and applied once committed.
//!
//! ```text
//!             seal(1)                            disengage(Owner)              all applied
//!  direct ────────────► held: writes stay here ───────────────────► draining ─────────────► direct
//!  (writes go to         until their epoch is
//!   the device)          released
//! ```
//! Invariants:
//! - From the first seal on, a write reaches the device only when its epoch is released, or this side owns the guest alone.
//!   What was written before belongs to epoch 1, whose barrier waits until DRBD has it on both sides: the standby has
//!   nothing to fall back to before that.
//! - Released epochs are applied in order, and within one the guest's flushes are kept: what stands before a flush is on
//!   stable storage before what stands behind it is written. So this side's device is at any moment what a guest's disk may
//!   be after a power failure.
//! - A guest's flush, or FUA, is answered at once: the epoch that it is in makes it good. [`Ahead::release`] succeeds only once
//!   the flushes of the epochs concerned are on stable storage, which it does not wait for, and the end with `Owner` returns
//!   only then; the engine lets output go after that. So the world never sees what a guest said after a flush that this side
//!   could lose.
//! - Memory: a write counts until DRBD has it on both sides, which is what the standby holds as well. At the limit writes
//!   wait, at half of it an epoch is asked for. From `pausing` until `seal` none waits: the hypervisor waits for them all.
//! - The lock is never held across I/O; `seal` takes this lock alone.

use crate::overlay::{Overlay, Piece};
use crate::wire::{Change, MAX_CHANGE};
use aventine_api::{Epoch, ErrorCode, Host, PluginError};
use aventine_disk_common::image::ImageError;
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a kept change takes in memory beside its data.
const CHANGE_COST: usize = 96;
/// How long a flush may take before the engine is told that it fails: longer than DRBD waits for a silent peer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the disk did not do what the engine asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AheadError {
    #[error("Epoch {0} cannot be sealed: the disk is not replicated any more")]
    Ended(Epoch, ErrorCode),
    #[error("Epoch {0} cannot be sealed: DRBD does not have the disk on both sides yet")]
    NotReady(Epoch),
    #[error("What the guest flushed up to epoch {0} is not on stable storage yet")]
    Owed(Epoch),
    #[error("A flush of the guest is not on stable storage after {PATIENCE:?}: see what holds DRBD up")]
    Slow,
    #[error("Writes of the guest could not be brought to the device")]
    Broken(#[source] ImageError),
}

impl From<AheadError> for PluginError {
    fn from(error: AheadError) -> PluginError {
        let code = match &error {
            AheadError::Ended(_, code) => *code,
            AheadError::NotReady(_) => ErrorCode::Refused,
            AheadError::Owed(_) => ErrorCode::TimedOut,
            AheadError::Slow | AheadError::Broken(_) => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}

/// One step of an epoch, in the guest's order.
#[derive(Clone)]
pub(crate) enum Step {
    Change(Arc<Change>),
    Flush,
}

/// The steps of one epoch.
#[derive(Default)]
pub(crate) struct Layer {
    pub(crate) epoch: Epoch,
    pub(crate) steps: Vec<Step>,
    bytes: usize,
    flushed: bool,
}

/// What goes into the channel.
pub(crate) enum Item {
    Describe,
    Change(Epoch, Arc<Change>),
    Barrier(Epoch),
    /// Everything up to the first epoch is on both sides; it is sent in the second.
    Both {
        on_both: Epoch,
        open: Epoch,
    },
}

/// How replication ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The channel is lost; who owns the guest is not known yet.
    Lost(ErrorCode),
    Owner,
    NotOwner,
}

pub(crate) struct Ahead {
    state: Mutex<State>,
    /// There is something to send, to apply or to end.
    work: Condvar,
    /// Something was applied, or waits no longer.
    room: Condvar,
    limit: usize,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) sent: AtomicU64,
    /// Bytes of the disk that DRBD has on both sides; all of them from [`Ahead::ready`] on.
    pub(crate) in_sync: AtomicU64,
}

struct State {
    held: bool,
    ready: bool,
    overlay: Overlay,
    queue: VecDeque<Item>,
    /// Sealed epochs that are not on the device, ascending.
    layers: VecDeque<Arc<Layer>>,
    open: Layer,
    sealed: Epoch,
    released: Epoch,
    /// On stable storage up to here.
    durable: Epoch,
    /// Since when the engine has asked for more, in vain.
    owed: Option<Instant>,
    /// Bytes of epochs that may not be on both sides, ascending.
    unconfirmed: VecDeque<(Epoch, usize)>,
    bytes: usize,
    asked: bool,
    pausing: bool,
    end: Option<End>,
    /// The applying thread has left.
    settled: bool,
    broken: Option<ImageError>,
}

impl Ahead {
    /// `buffer`: bytes that writes may take before they wait, four times over.
    pub(crate) fn new(buffer: usize, host: Arc<dyn Host>) -> Ahead {
        let state = State {
            held: false,
            ready: false,
            overlay: Overlay::default(),
            queue: VecDeque::from([Item::Describe]),
            layers: VecDeque::new(),
            open: Layer { epoch: Epoch::FIRST, ..Layer::default() },
            sealed: Epoch::COPY,
            released: Epoch::COPY,
            durable: Epoch::COPY,
            owed: None,
            unconfirmed: VecDeque::new(),
            bytes: 0,
            asked: false,
            pausing: false,
            end: None,
            settled: false,
            broken: None,
        };
        let (work, room) = (Condvar::new(), Condvar::new());
        Ahead {
            state: Mutex::new(state),
            work,
            room,
            limit: buffer / 4,
            host,
            sent: AtomicU64::new(0),
            in_sync: AtomicU64::new(0),
        }
    }

    /// Takes a change of the guest's. `Ok(false)`: it goes to the device. Waits for room.
    pub(crate) fn write(
        &self,
        pieces: impl FnOnce() -> Vec<Change>,
        size: usize,
        fua: bool,
    ) -> Result<bool, ImageError> {
        let cost = size.div_ceil(MAX_CHANGE).max(1) * CHANGE_COST + size;
        let full = |s: &mut State| s.held && s.broken.is_none() && !s.pausing && s.bytes >= self.limit_of(s);
        // Copied before the lock is taken, and in vain only around the first seal.
        let pieces: Vec<_> = if self.is_held() { pieces() } else { return Ok(false) };
        let mut state = wait_while(&self.room, self.lock(), full);
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        if !state.held {
            // Drained while this waited.
            return Ok(false);
        }
        let epoch = state.open.epoch;
        for change in pieces {
            let change = Arc::new(change);
            state.overlay.insert(&change);
            state.open.steps.push(Step::Change(Arc::clone(&change)));
            if state.end.is_none() {
                state.queue.push_back(Item::Change(epoch, change));
            }
        }
        state.open.bytes += cost;
        state.bytes += cost;
        if fua {
            state.owe();
        }
        let ask = state.end.is_none() && !state.asked && state.open.bytes >= self.limit / 2;
        state.asked |= ask;
        drop(state);
        self.work.notify_all();
        if ask {
            self.host.request_epoch();
        }
        Ok(true)
    }

    /// The guest flushes. `true`: its epoch will make it good; else the device is to be flushed now.
    pub(crate) fn flush(&self) -> Result<bool, ImageError> {
        let mut state = self.lock();
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        if state.end == Some(End::Owner) {
            state = wait_while(&self.room, state, |s| !s.settled);
            return state.broken.clone().map_or(Ok(false), Err);
        }
        // Before the first seal as well, if it is near: the barrier of epoch 1 flushes the device.
        let takes = state.held || (state.pausing && state.end.is_none());
        if state.held {
            state.owe();
        }
        Ok(takes)
    }

    /// What a read finds here; the rest is on the device.
    pub(crate) fn find(&self, range: &Range<u64>) -> Vec<Piece> {
        let state = self.lock();
        if state.overlay.is_empty() { Vec::new() } else { state.overlay.find(range) }
    }

    fn is_held(&self) -> bool {
        self.lock().held
    }

    pub(crate) fn pausing(&self) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.pausing = true;
            self.room.notify_all();
        }
    }

    /// DRBD has the disk of `size` bytes on both sides: epochs may be sealed.
    pub(crate) fn ready(&self, size: u64) {
        self.lock().ready = true;
        self.in_sync.store(size, Ordering::Release);
    }

    /// Ends the open epoch as `epoch`. Never waits.
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<(), AheadError> {
        let mut state = self.lock();
        match state.end {
            None => {}
            Some(End::Lost(code)) => return Err(AheadError::Ended(epoch, code)),
            Some(_) => return Err(AheadError::Ended(epoch, ErrorCode::Refused)),
        }
        if epoch <= state.sealed {
            return Ok(());
        }
        if !state.ready {
            return Err(AheadError::NotReady(epoch));
        }
        state.held = true;
        let next = Layer { epoch: epoch.next(), ..Layer::default() };
        let mut layer = std::mem::replace(&mut state.open, next);
        layer.epoch = epoch;
        layer.bytes += CHANGE_COST;
        state.bytes += CHANGE_COST;
        state.unconfirmed.push_back((epoch, layer.bytes));
        state.layers.push_back(Arc::new(layer));
        state.queue.push_back(Item::Barrier(epoch));
        state.sealed = epoch;
        state.asked = false;
        state.pausing = false;
        drop(state);
        self.work.notify_all();
        Ok(())
    }

    /// The standby has committed `epoch`: it may be applied. Succeeds once its flushes are on stable storage.
    pub(crate) fn release(&self, epoch: Epoch) -> Result<(), AheadError> {
        let mut state = self.lock();
        state.released = state.released.max(epoch.min(state.sealed));
        self.work.notify_all();
        if !state.layers.iter().any(|l| l.epoch <= epoch && l.flushed) {
            return Ok(());
        }
        if let Some(error) = &state.broken {
            return Err(AheadError::Broken(error.clone()));
        }
        let since = *state.owed.get_or_insert_with(Instant::now);
        match since.elapsed() < PATIENCE {
            _ if state.settled => Ok(()),
            true => Err(AheadError::Owed(epoch)),
            false => Err(AheadError::Slow),
        }
    }

    /// Ends replication. `Owner`: everything is applied; waits for it if the guest has flushed.
    pub(crate) fn end(&self, why: End) -> Result<(), AheadError> {
        let mut state = self.lock();
        let first = matches!(state.end, None | Some(End::Lost(_)));
        if !first || (matches!(why, End::Lost(_)) && state.end.is_some()) {
            return Ok(());
        }
        state.end = Some(why);
        state.pausing = false;
        state.queue.clear();
        let flushed = state.open.flushed || state.layers.iter().any(|l| l.flushed);
        if why == End::NotOwner {
            let released = state.released;
            state.layers.retain(|l| l.epoch <= released);
            state.open = Layer::default();
            state.overlay.clear();
            state.held = false;
        }
        self.work.notify_all();
        self.room.notify_all();
        match why {
            End::Owner if flushed => self.settle(state),
            _ => Ok(()),
        }
    }

    /// Ends replication because of `error`, and says so once.
    pub(crate) fn fail(&self, error: PluginError) {
        let was_on = self.lock().end.is_none();
        if was_on && self.end(End::Lost(error.code())).is_ok() {
            self.host.failed(error);
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lock().end, Some(End::Owner | End::NotOwner))
    }

    pub(crate) fn ends_as(&self) -> Option<End> {
        self.lock().end
    }

    /// Waits until all is applied. What was waited for in vain before counts.
    fn settle(&self, state: MutexGuard<'_, State>) -> Result<(), AheadError> {
        let patience = PATIENCE.saturating_sub(state.owed.map_or(Duration::ZERO, |since| since.elapsed()));
        let waited = self.room.wait_timeout_while(state, patience, |s| !s.settled);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match &state.broken {
            Some(error) => Err(AheadError::Broken(error.clone())),
            None if timeout.timed_out() => Err(AheadError::Slow),
            None => Ok(()),
        }
    }

    fn limit_of(&self, state: &State) -> usize {
        // Nobody waits for a channel that is lost, as long as there is memory: the arbiter may take its time.
        if matches!(state.end, Some(End::Lost(_))) { self.limit * 4 } else { self.limit }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// For the sending thread.
impl Ahead {
    /// Waits for what is to be sent next, all that is there. `None`: nothing will be.
    pub(crate) fn next_items(&self) -> Option<VecDeque<Item>> {
        let idle = |s: &mut State| s.queue.is_empty() && s.end.is_none();
        let mut state = wait_while(&self.work, self.lock(), idle);
        state.end.is_none().then(|| std::mem::take(&mut state.queue))
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What the applying thread does next.
pub(crate) enum Due {
    /// To be applied, in order.
    Layers(Vec<Arc<Layer>>),
    /// Some time has passed, and there may be news from DRBD.
    Look,
    /// All is applied that will be.
    End(End),
}

/// For the applying thread.
impl Ahead {
    /// Waits until something is due, for `patience` at most.
    pub(crate) fn due(&self, patience: Duration) -> Due {
        let idle = |s: &mut State| {
            let front = s.layers.front().is_some_and(|l| l.epoch <= s.released);
            !front && !matches!(s.end, Some(End::Owner | End::NotOwner))
        };
        let waited = self.work.wait_timeout_while(self.lock(), patience, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let end = state.end;
        if end == Some(End::NotOwner) {
            return Due::End(End::NotOwner);
        }
        if end == Some(End::Owner) && !state.open.steps.is_empty() {
            // The open epoch is this side's own now.
            let next = Layer { epoch: state.open.epoch, ..Layer::default() };
            let mut layer = std::mem::replace(&mut state.open, next);
            layer.epoch = state.sealed.next().max(layer.epoch);
            state.sealed = layer.epoch;
            state.open.epoch = layer.epoch.next();
            state.unconfirmed.push_back((layer.epoch, layer.bytes));
            state.layers.push_back(Arc::new(layer));
        }
        let until = if end == Some(End::Owner) { state.sealed } else { state.released };
        let due: Vec<_> = state.layers.iter().take_while(|l| l.epoch <= until).cloned().collect();
        match end {
            _ if !due.is_empty() => Due::Layers(due),
            // Under the lock: the next write goes to the device.
            Some(End::Owner) => {
                state.held = false;
                Due::End(End::Owner)
            }
            _ => Due::Look,
        }
    }

    /// A change is on the device, where reads find it.
    pub(crate) fn written(&self, change: &Arc<Change>) {
        self.lock().overlay.remove(change);
    }

    /// Everything up to `epoch` is on stable storage of this side.
    pub(crate) fn durable(&self, epoch: Epoch) {
        let mut state = self.lock();
        let done: Vec<_> = {
            let count = state.layers.iter().take_while(|l| l.epoch <= epoch).count();
            state.layers.drain(..count).collect()
        };
        state.durable = state.durable.max(epoch);
        state.owed = None;
        if state.end.is_some() {
            // Nobody is told any more what is on both sides.
            state.confirm(epoch);
        }
        drop(state);
        self.room.notify_all();
        drop(done);
    }

    /// DRBD has everything on both sides that is durable: the standby need not keep it. Answers whether that is news.
    pub(crate) fn confirm(&self) -> bool {
        let mut state = self.lock();
        let epoch = state.durable;
        if state.unconfirmed.front().is_none_or(|(of, _)| *of > epoch) {
            return false;
        }
        state.confirm(epoch);
        if state.end.is_none() {
            let open = state.open.epoch;
            state.queue.push_back(Item::Both { on_both: epoch, open });
        }
        drop(state);
        self.work.notify_all();
        self.room.notify_all();
        true
    }

    /// Bytes that may not be on both sides, and whether the guest's writes wait because of them alone.
    pub(crate) fn unconfirmed(&self) -> (usize, bool) {
        let state = self.lock();
        let durable = state.unconfirmed.iter().filter(|(of, _)| *of <= state.durable);
        let bytes = durable.map(|(_, bytes)| bytes).sum();
        (bytes, bytes >= self.limit)
    }

    /// Nothing more is applied. With `broken`, what is not applied stays readable, and the guest's writes fail.
    pub(crate) fn settled(&self, broken: Option<ImageError>) {
        let mut state = self.lock();
        state.settled = true;
        state.broken = broken;
        drop(state);
        self.room.notify_all();
    }

    /// Waits for the end.
    pub(crate) fn ended(&self) -> End {
        let on = |s: &mut State| !matches!(s.end, Some(End::Owner | End::NotOwner));
        wait_while(&self.work, self.lock(), on).end.unwrap_or(End::NotOwner)
    }
}

impl State {
    fn owe(&mut self) {
        self.open.flushed = true;
        if matches!(self.open.steps.last(), Some(Step::Change(_))) {
            self.open.steps.push(Step::Flush);
        }
    }

    fn confirm(&mut self, epoch: Epoch) {
        while let Some((of, bytes)) = self.unconfirmed.front().copied()
            && of <= epoch
        {
            self.unconfirmed.pop_front();
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }
}
