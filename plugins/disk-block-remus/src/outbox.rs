//! What is on its way to the standby: a queue bounded in bytes, and the thread that empties it into the channel.
//!
//! Invariants:
//! - The queue's order is the channel's. Whoever changes the image holds the lock of the range it changes from before
//!   the change until the change is queued, so overlapping changes have the same order in the image, in the queue and
//!   on the standby; changes that do not overlap commute.
//! - The queue's lock is never held across I/O. `seal` takes this lock alone, so it waits for nobody.
//! - A change waits for room before it is made, except from `pausing` until `seal`: the hypervisor waits for the
//!   guest's requests then, and they must not wait for the network. What they take beyond the limit is bounded by
//!   the requests that a guest can have under way.
//! - A flush (or FUA) that comes between `pausing` and `seal` is answered at once and made good before the barrier of
//!   that epoch is sent. So no epoch commits whose flushes are not on stable storage of this side, and the world
//!   cannot see anything that the guest said after such a flush before that.
//! - With `durable = "memory"` every flush is answered at once while epochs commit, and made good when that ends.
//! - A change is noted in the window of the epoch that it is queued for: `seal` turns the window under the same lock.
//! - Few bytes wait a moment for more, because a record for each small write would cost more than the write. Whatever an epoch's commit
//!   waits for does not: a barrier, as every other note, sends all that is queued before it.
//! - Once the queue has ended, nobody waits for it any more.

use crate::blocks::block_of;
use crate::config::Durable;
use crate::device::Medium;
use crate::history::{History, Next};
use crate::talk::Talk;
use crate::wire::{Change, Check, Description, MAX_CHANGE, Tally, barrier, kind};
use aventine_api::{Epoch, ErrorCode, Host, PluginError, RecordHead, RecordTx};
use aventine_disk_common::change::CHANGE_HEAD;
use aventine_disk_common::image::Image;
use aventine_disk_common::pool::Pool;
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What a queued change takes in memory beside its data.
const CHANGE_COST: usize = 64;
/// Most changes in a record: two parts each, well under what one system call takes.
const MAX_CHANGES: usize = 256;
/// Most bytes of a record: what the processor's caches hold between hashing and sending them, and as much as the longest change has,
/// so that the standby's buffers fit one as the other.
pub(crate) const MAX_BYTES: usize = MAX_CHANGE + CHANGE_HEAD;
/// Bytes that are sent at once, and how long fewer wait for more: so long that a steady load seldom lets it come to that, and less
/// than an epoch.
const ENOUGH: usize = 256 << 10;
const LINGER: Duration = Duration::from_millis(10);

/// Whoever waits for room is woken once one part in so many is free: all who wait together, and not again after each record only
/// for one of them to find room.
const AMPLE: usize = 16;

/// Why an epoch could not be sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("Epoch {0} cannot be sealed: the disk is not replicated any more")]
    Ended(Epoch, ErrorCode),
    #[error("Epoch {0} cannot be sealed: the initial copy of the disk is not complete")]
    Copying(Epoch),
}

impl From<SealError> for PluginError {
    fn from(error: SealError) -> PluginError {
        let code = match &error {
            SealError::Ended(_, code) => *code,
            SealError::Copying(_) => ErrorCode::Refused,
        };
        PluginError::new(code, error)
    }
}

/// How a queued change came about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The guest made it.
    Guest,
    /// The initial copy: leaves most of the queue to the guest.
    Copy,
}

/// The queue.
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Something was queued, or the queue has ended.
    work: Condvar,
    /// Something was sent, a pause is near, or the queue has ended.
    room: Condvar,
    /// Bytes above which changes wait, and above which the open epoch should end.
    limit: usize,
    durable: Durable,
    /// Whether the standby answers.
    asks: bool,
    host: Arc<dyn Host>,
    history: Arc<History>,
    /// Of changes that were sent; with those queued not much more than the queue's limit.
    pub(crate) pool: Pool,
    pub(crate) talk: Talk,
    /// Taken away when the disk is dropped.
    image: Mutex<Option<Arc<Image>>>,
    sent: AtomicU64,
    copied: AtomicU64,
}

struct State {
    items: VecDeque<Item>,
    /// How many of them are notes.
    notes: usize,
    /// Bytes reserved, queued or being sent.
    bytes: usize,
    /// At so many the sending thread, which sleeps, is to be woken.
    wake_at: usize,
    /// The epoch of what is queued now.
    open: Epoch,
    sealed: Epoch,
    released: Epoch,
    open_bytes: usize,
    asked: bool,
    copy_queued: bool,
    pausing: bool,
    /// A flush was answered that has not been made good.
    owed: bool,
    ended: Option<ErrorCode>,
}

impl State {
    fn note(&mut self, note: Note) {
        self.items.push_back(Item::Note(note));
        self.notes += 1;
    }
}

enum Item {
    Change { epoch: Epoch, change: Change, covers: u64 },
    Note(Note),
}

impl Item {
    /// Whether it goes into a record of `epoch` that has room for `room` bytes.
    fn joins(&self, epoch: Epoch, room: usize) -> bool {
        matches!(self, Item::Change { epoch: of, change, .. } if *of == epoch && change.wire_len() <= room)
    }
}

/// A record that stands alone.
enum Note {
    Describe(Description),
    Copied { covers: u64 },
    Check { epoch: Epoch, check: Check },
    Barrier { epoch: Epoch, owed: bool, next: Option<Next> },
}

/// What is sent as one record.
enum Batch {
    Changes { epoch: Epoch, changes: Vec<Change>, covers: u64 },
    Note(Note),
}

impl Outbox {
    /// `asks`: whether the standby will answer the description.
    pub(crate) fn new(
        Medium { image, history }: Medium,
        limit: usize,
        durable: Durable,
        asks: bool,
        host: Arc<dyn Host>,
    ) -> Outbox {
        history.begin_session();
        let (point, previous) = history.points();
        let size = image.size();
        let description = Description { size, block: block_of(size), asks, point, previous };
        let state = State {
            items: VecDeque::from([Item::Note(Note::Describe(description))]),
            notes: 1,
            bytes: 0,
            wake_at: usize::MAX,
            open: Epoch::COPY,
            sealed: Epoch::COPY,
            released: Epoch::COPY,
            open_bytes: 0,
            asked: false,
            copy_queued: false,
            pausing: false,
            owed: false,
            ended: None,
        };
        Outbox {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            limit,
            durable,
            asks,
            host,
            history,
            pool: Pool::new(limit / 4),
            talk: Talk::default(),
            image: Mutex::new(Some(image)),
            sent: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        }
    }

    /// What `changes` changes with `data` bytes in all take of the queue.
    pub(crate) fn cost(changes: usize, data: usize) -> usize {
        changes * CHANGE_COST + data
    }

    /// Waits for room and takes it. `false`: nothing is replicated any more, go on without. The caller holds the lock
    /// of the range that it is about to change, and hands the change to [`Outbox::push`].
    pub(crate) fn reserve(&self, bytes: usize, origin: Origin) -> bool {
        let limit = if origin == Origin::Guest { self.limit } else { self.limit / 4 };
        let full = |s: &mut State| {
            let hurried = s.pausing && origin == Origin::Guest;
            s.ended.is_none() && !hurried && s.bytes >= limit
        };
        let mut state = wait_while(&self.room, lock(&self.state), full);
        state.bytes += bytes;
        state.ended.is_none()
    }

    /// Queues what the guest changed at `offset`, as [`Outbox::push`] does, and notes it for the same epoch.
    pub(crate) fn push_guest(&self, changes: Vec<Change>, reserved: usize, at: (u64, u64)) {
        self.queue(changes, reserved, 0, Some(at));
    }

    /// Queues changes that the image has by now and that take at most the `reserved` bytes. `covers`: bytes of the
    /// image that the initial copy is further on.
    pub(crate) fn push(&self, changes: Vec<Change>, reserved: usize, covers: u64) {
        self.queue(changes, reserved, covers, None);
    }

    fn queue(&self, changes: Vec<Change>, reserved: usize, covers: u64, noted: Option<(u64, u64)>) {
        let bytes: usize = changes.iter().map(|c| Outbox::cost(1, c.data.len())).sum();
        let gives_up = changes.is_empty();
        let (ask, wake) = {
            let mut state = lock(&self.state);
            if state.ended.is_some() {
                return;
            }
            if let Some((offset, len)) = noted {
                self.history.note(offset, len);
            }
            let (epoch, mut covers) = (state.open, covers);
            for change in changes {
                state.items.push_back(Item::Change { epoch, change, covers: std::mem::take(&mut covers) });
            }
            state.bytes = (state.bytes + bytes).saturating_sub(reserved);
            state.open_bytes += bytes;
            let ask = epoch != Epoch::COPY && !state.asked && state.open_bytes > self.limit;
            state.asked |= ask;
            let wake = state.bytes >= state.wake_at;
            if wake {
                state.wake_at = usize::MAX;
            }
            (ask, wake)
        };
        if wake {
            self.work.notify_one();
        }
        if gives_up {
            // Nothing will be sent of it that would make room known.
            self.room.notify_all();
        }
        if ask {
            self.host.request_epoch();
        }
    }

    /// The initial copy is queued as a whole; `covers` as in [`Outbox::push`].
    pub(crate) fn push_copied(&self, covers: u64) {
        let mut state = lock(&self.state);
        if state.ended.is_none() {
            state.copy_queued = true;
            state.note(Note::Copied { covers });
            self.work.notify_one();
        }
    }

    /// Queues what a range holds that the caller has the lock of.
    pub(crate) fn push_check(&self, check: Check) {
        let mut state = lock(&self.state);
        if state.ended.is_none() {
            let epoch = state.open;
            state.note(Note::Check { epoch, check });
            drop(state);
            self.work.notify_one();
        }
    }

    /// The guest is about to be paused: lets go whoever waits for room.
    pub(crate) fn pausing(&self) {
        lock(&self.state).pausing = true;
        self.room.notify_all();
    }

    /// Whether a flush need not be carried out now, because its epoch waits for it, or for the standby's memory.
    pub(crate) fn takes_over_flush(&self) -> bool {
        let mut state = lock(&self.state);
        let memory = self.durable == Durable::Memory && state.released > Epoch::COPY;
        let takes = (state.pausing || memory) && state.ended.is_none();
        state.owed |= takes;
        takes
    }

    /// Ends the open epoch as `epoch`. Never waits.
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<(), SealError> {
        let mut state = lock(&self.state);
        if let Some(code) = state.ended {
            return Err(SealError::Ended(epoch, code));
        }
        if epoch <= state.sealed {
            return Ok(());
        }
        if !state.copy_queued {
            return Err(SealError::Copying(epoch));
        }
        let owed = self.durable == Durable::Flush && std::mem::take(&mut state.owed);
        let next = self.history.turn(state.sealed == Epoch::COPY);
        state.note(Note::Barrier { epoch, owed, next });
        state.sealed = epoch;
        state.open = epoch.next();
        state.open_bytes = 0;
        state.asked = false;
        state.pausing = false;
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The standby has committed `epoch`.
    pub(crate) fn release(&self, epoch: Epoch) {
        let mut state = lock(&self.state);
        state.released = state.released.max(epoch);
    }

    /// Ends replication: whoever waits goes on, what is queued is forgotten. Answers whether it had not ended before.
    pub(crate) fn end(&self, code: ErrorCode) -> bool {
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return false;
        }
        state.ended = Some(code);
        state.pausing = false;
        state.items.clear();
        state.notes = 0;
        state.bytes = 0;
        drop(state);
        self.work.notify_all();
        self.room.notify_all();
        self.talk.end();
        true
    }

    /// Whether the standby will answer a check: epochs are sealed, and it talks.
    pub(crate) fn compares(&self) -> bool {
        let state = lock(&self.state);
        state.ended.is_none() && state.sealed > Epoch::COPY && self.asks
    }

    /// Whether replication has ended.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.state).ended.is_some()
    }

    /// Ends replication because of `error`, and says so once.
    pub(crate) fn fail(&self, error: PluginError) {
        if self.end(error.code()) {
            self.host.failed(error);
        }
    }

    /// Takes the image away from the sending thread, once it does not use it, and makes good what is owed.
    pub(crate) fn release_image(&self) -> Result<(), PluginError> {
        let image = lock(&self.image).take();
        let owed = std::mem::take(&mut lock(&self.state).owed);
        match image {
            Some(image) if owed => Ok(image.sync()?),
            _ => Ok(()),
        }
    }

    /// Bytes of the initial copy that have been sent.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Payload bytes sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The sending thread: until the queue or the channel ends.
    pub(crate) fn run(&self, mut tx: Box<dyn RecordTx>) {
        let mut tally = Tally::default();
        while let Some(batch) = self.next() {
            if let Err(error) = self.send(&batch, &mut *tx, &mut tally) {
                self.fail(error);
                break;
            }
            self.finish(batch);
        }
        if let Err(error) = self.sync_owed() {
            self.host.failed(error);
        }
    }

    /// Replication has ended: a flush that the next barrier would have made good has no barrier any more.
    fn sync_owed(&self) -> Result<(), PluginError> {
        let owed = std::mem::take(&mut lock(&self.state).owed);
        if owed { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), PluginError> {
        // The image stays locked up meanwhile: it is not taken away under the sync.
        lock(&self.image).as_ref().map_or(Ok(()), |image| Ok(image.sync()?))
    }

    /// Waits for the next record.
    fn next(&self) -> Option<Batch> {
        let idle = |s: &mut State| {
            s.wake_at = 1;
            s.items.is_empty() && s.ended.is_none()
        };
        let few = |s: &mut State| {
            s.wake_at = ENOUGH;
            s.notes == 0 && s.bytes < ENOUGH && s.ended.is_none()
        };
        let state = wait_while(&self.work, lock(&self.state), idle);
        let waited = self.work.wait_timeout_while(state, LINGER, few);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.wake_at = usize::MAX;
        let State { items, notes, .. } = &mut *state;
        let (epoch, change, mut covers) = match items.pop_front()? {
            Item::Note(note) => {
                *notes -= 1;
                return Some(Batch::Note(note));
            }
            Item::Change { epoch, change, covers } => (epoch, change, covers),
        };
        let mut bytes = change.wire_len();
        let mut changes = vec![change];
        while changes.len() < MAX_CHANGES
            && items.front().is_some_and(|i| i.joins(epoch, MAX_BYTES.saturating_sub(bytes)))
        {
            if let Some(Item::Change { change, covers: more, .. }) = items.pop_front() {
                bytes += change.wire_len();
                covers += more;
                changes.push(change);
            }
        }
        Some(Batch::Changes { epoch, changes, covers })
    }

    fn send(&self, batch: &Batch, tx: &mut dyn RecordTx, tally: &mut Tally) -> Result<(), PluginError> {
        match batch {
            Batch::Changes { epoch, changes, .. } => {
                let mut parts = Vec::with_capacity(changes.len() * 2);
                for change in changes {
                    tally.add(change);
                    parts.extend([&change.head[..], &change.data[..]]);
                }
                parts.retain(|p| !p.is_empty());
                tx.send(RecordHead { epoch: *epoch, kind: kind::CHANGES }, &parts)
            }
            Batch::Note(Note::Barrier { epoch, owed, next }) => {
                if *owed {
                    self.sync()?;
                }
                let barrier = barrier(tally.finish(), *next);
                tx.send(RecordHead { epoch: *epoch, kind: kind::BARRIER }, &[&barrier])
            }
            Batch::Note(Note::Describe(description)) => {
                tx.send(RecordHead { epoch: Epoch::COPY, kind: kind::DESCRIBE }, &[&description.encode()])
            }
            Batch::Note(Note::Check { epoch, check }) => {
                tx.send(RecordHead { epoch: *epoch, kind: kind::CHECK }, &[&check.encode()])
            }
            Batch::Note(Note::Copied { .. }) => {
                tx.send(RecordHead { epoch: Epoch::COPY, kind: kind::COPIED }, &[])
            }
        }
    }

    /// Gives back the room of what was sent. The batch's memory goes outside of the lock.
    fn finish(&self, batch: Batch) {
        let (changes, covers) = match batch {
            Batch::Changes { changes, covers, .. } => (changes, covers),
            Batch::Note(Note::Copied { covers }) => (Vec::new(), covers),
            Batch::Note(_) => return,
        };
        let cost: usize = changes.iter().map(|c| Outbox::cost(1, c.data.len())).sum();
        let payload: usize = changes.iter().map(Change::wire_len).sum();
        self.sent.fetch_add(payload as u64, Ordering::Relaxed);
        self.copied.fetch_add(covers, Ordering::Relaxed);
        let ample = {
            let mut state = lock(&self.state);
            state.bytes = state.bytes.saturating_sub(cost);
            state.bytes <= self.limit - self.limit / AMPLE
        };
        if ample {
            self.room.notify_all();
        }
        changes.into_iter().for_each(|c| self.pool.give(c.data));
    }
}
