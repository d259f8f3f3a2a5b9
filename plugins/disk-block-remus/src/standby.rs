//! The standby: takes records as they come, keeps each epoch's until it is committed, and applies them in order.
//!
//! ```text
//!  Describe ─► copying: changes go into the image as they come ─► Copied ─► Barrier(1) ─┐
//!                  ┌────────────────────────────────────────────────────────────────────┘
//!                  ▼
//!             open epoch: changes are kept ─► Barrier(n), checked ─► staged ─► committed ─► applied
//! ```
//! Invariants:
//! - From the first barrier on, the image changes only in [`Staging::apply`], by whole records of committed epochs,
//!   in the order of their arrival. Applying an epoch again gives the same image.
//! - Memory: above half of the limit the reader waits while a complete epoch is there that will be applied; that needs
//!   nothing more from this channel. It never waits in the middle of the only epoch, because its barrier may be what
//!   everybody waits for. An epoch that alone passes the limit is an error. The primary asks for the end of an epoch
//!   at a quarter of the limit and holds back a quarter more, so that this takes a wrong configuration.
//! - What was applied is brought to stable storage every few seconds, so that a device that loses writes ends protection
//!   now, and not only the takeover that would need them.
//! - A point counts as reached once what was applied up to its epoch is on stable storage: see `history`.
//! - Once the reader has been stopped it does not touch the image any more, though it may still wait in the channel.

use crate::device::Medium;
use crate::history::{History, Next};
use crate::outbox::MAX_BYTES;
use crate::points::Answers;
use crate::wire::{Arrived, Check, RecordError, Tally, changes, kind, parse_barrier};
use aventine_api::{Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx};
use aventine_disk_common::image::{Image, ImageError};
use aventine_disk_common::pool::Pool;
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a write may stay unknown to the device, as the kernel's own write-back has it.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// What a kept record takes in memory beside its payload, and an epoch beside its records.
const RECORD_COST: usize = 64;
/// Adjacent writes are applied as one of at most so many bytes.
const MAX_RUN: usize = 512 << 10;

/// Why the primary cannot be followed any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("The disk's channel carries what does not make sense")]
    Record(#[from] RecordError),
    #[error("An epoch has more than {limit} bytes of disk writes. Raise `buffer` of this disk on both hosts")]
    TooLarge { limit: usize },
    #[error("Applying the primary's image failed")]
    Image(#[from] ImageError),
    #[error("What was applied is lost, all of it or a part")]
    Unsynced(#[source] ImageError),
}

impl From<FollowError> for PluginError {
    fn from(error: FollowError) -> PluginError {
        let code = match &error {
            FollowError::Record(_) => ErrorCode::Corrupt,
            FollowError::TooLarge { .. } => ErrorCode::Limit,
            FollowError::Image(e) | FollowError::Unsynced(e) => PluginError::from(e.clone()).code(),
        };
        PluginError::new(code, error)
    }
}

/// Why an epoch could not be committed, applied or taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EpochError {
    #[error("Epoch {epoch} cannot be committed: the disk is complete up to epoch {staged} only")]
    NotStaged { epoch: Epoch, staged: Epoch },
    #[error("Epoch {epoch} could not be applied; the image is between two epochs")]
    Apply { epoch: Epoch, source: Box<FollowError> },
    #[error("The image is between epochs {} and {epoch}, because applying {epoch} failed", epoch.previous())]
    HalfApplied { epoch: Epoch },
    #[error("Nothing can be taken over: no epoch of the disk is committed")]
    NothingCommitted,
    #[error(
        "Epoch {epoch} cannot be taken over: the image is at {applied}, and {committed} is the last one committed"
    )]
    OutOfReach { epoch: Epoch, applied: Epoch, committed: Epoch },
}

impl From<EpochError> for PluginError {
    fn from(error: EpochError) -> PluginError {
        let code = if matches!(error, EpochError::Apply { .. }) { ErrorCode::Io } else { ErrorCode::Refused };
        PluginError::new(code, error)
    }
}

/// What has arrived and is not applied.
pub(crate) struct Staging {
    state: Mutex<State>,
    /// Something was applied, or the reader is to stop.
    room: Condvar,
    /// The reader's access to the image; taken away when it is stopped.
    image: Mutex<Option<Arc<Image>>>,
    /// Of records that were applied.
    pool: Pool,
    size: u64,
    limit: usize,
    host: Arc<dyn Host>,
    history: Arc<History>,
    answers: Arc<Answers>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    copied: bool,
    /// Records of the epoch whose barrier has not come.
    open: Records,
    /// Complete epochs that are not applied, ascending.
    epochs: VecDeque<(Epoch, Arc<Records>)>,
    staged: Epoch,
    committed: Epoch,
    applied: Epoch,
    /// Points that were not reached, ascending.
    points: VecDeque<(Epoch, Next)>,
    /// The epoch whose application failed.
    half: Option<Epoch>,
    /// Bytes of all of the above.
    bytes: usize,
}

/// Writes each of which begins where the one before ends.
#[derive(Default)]
struct Run<'a> {
    parts: Vec<IoSlice<'a>>,
    offset: u64,
    len: usize,
}

impl<'a> Run<'a> {
    fn continues(&self, offset: u64, data: &[u8]) -> bool {
        self.offset + self.len as u64 == offset && self.len + data.len() <= MAX_RUN
    }

    fn add(&mut self, offset: u64, data: &'a [u8]) {
        if self.parts.is_empty() {
            self.offset = offset;
        }
        self.parts.push(IoSlice::new(data));
        self.len += data.len();
    }

    /// Writes what there is; begins a new one.
    fn write(&mut self, image: &Image) -> Result<(), ImageError> {
        if !self.parts.is_empty() {
            image.write_behind(self.offset, &self.parts)?;
        }
        self.parts.clear();
        self.len = 0;
        Ok(())
    }
}

#[derive(Default)]
struct Records {
    kept: Vec<Kept>,
    bytes: usize,
}

/// What is done when the epoch is applied.
enum Kept {
    Changes(Vec<u8>),
    Check(Check),
}

impl Kept {
    fn payload(self) -> Option<Vec<u8>> {
        match self {
            Kept::Changes(payload) => Some(payload),
            Kept::Check(_) => None,
        }
    }
}

impl Staging {
    pub(crate) fn new(
        Medium { image, history }: Medium,
        limit: usize,
        host: Arc<dyn Host>,
        answers: Arc<Answers>,
    ) -> Staging {
        let size = image.size();
        let (state, room) = (Mutex::default(), Condvar::new());
        let (image, pool) = (Mutex::new(Some(image)), Pool::new(limit / 8));
        Staging { state, room, image, pool, size, limit, host, history, answers }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.state).bytes as u64
    }

    pub(crate) fn commit(&self, epoch: Epoch) -> Result<(), EpochError> {
        let mut state = lock(&self.state);
        if epoch > state.staged {
            return Err(EpochError::NotStaged { epoch, staged: state.staged });
        }
        state.committed = state.committed.max(epoch);
        Ok(())
    }

    /// Applies what is committed, up to `epoch`. An epoch stays until all of it is in the image.
    pub(crate) fn apply(&self, epoch: Epoch, image: &Image) -> Result<(), EpochError> {
        while let Some((of, records)) = self.due(epoch) {
            let mut compared = Vec::new();
            let done = records.kept.iter().try_for_each(|kept| match kept {
                Kept::Changes(payload) => self.carry_out(payload, image),
                Kept::Check(check) => {
                    compared.push(differs(check, image)?);
                    Ok(())
                }
            });
            if let Err(source) = done {
                lock(&self.state).half = Some(of);
                return Err(EpochError::Apply { epoch: of, source: Box::new(source) });
            }
            self.answers.compared(&compared);
            let mut state = lock(&self.state);
            state.epochs.pop_front();
            state.applied = of;
            state.half = None;
            state.bytes -= records.bytes;
            drop(state);
            self.room.notify_all();
            if let Some(records) = Arc::into_inner(records) {
                self.give_back(records);
            }
        }
        Ok(())
    }

    fn due(&self, epoch: Epoch) -> Option<(Epoch, Arc<Records>)> {
        let state = lock(&self.state);
        let (of, records) = state.epochs.front()?;
        (*of <= epoch.min(state.committed)).then(|| (*of, Arc::clone(records)))
    }

    fn carry_out(&self, payload: &[u8], image: &Image) -> Result<(), FollowError> {
        let mut run = Run::default();
        for change in changes(payload, self.size) {
            match change? {
                Arrived::Write { offset, data } => {
                    if !run.continues(offset, data) {
                        run.write(image)?;
                    }
                    run.add(offset, data);
                }
                Arrived::Zero { offset, len, unmap } => {
                    run.write(image)?;
                    image.zero(offset, len, unmap)?;
                }
            }
        }
        Ok(run.write(image)?)
    }

    /// Whether `epoch` can be taken over, and if so, forgets everything after it.
    pub(crate) fn cut(&self, epoch: Epoch) -> Result<(), EpochError> {
        {
            let mut state = lock(&self.state);
            let (applied, committed) = (state.applied, state.committed);
            if let Some(epoch) = state.half {
                return Err(EpochError::HalfApplied { epoch });
            }
            if committed == Epoch::COPY {
                return Err(EpochError::NothingCommitted);
            }
            if !(applied..=committed).contains(&epoch) {
                return Err(EpochError::OutOfReach { epoch, applied, committed });
            }
            state.committed = epoch;
            state.epochs.retain(|(of, _)| *of <= epoch);
            state.open = Records::default();
            state.points.clear();
            state.bytes = state.epochs.iter().map(|(_, r)| r.bytes).sum();
        }
        self.stop();
        Ok(())
    }

    /// Stops the reader; on return it will not touch the image again.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.room.notify_all();
        // Waits for the record that is being applied, if any, and the point that is being reached.
        lock(&self.image).take();
        self.history.settled();
    }

    /// The reading thread: until the channel ends, something does not make sense, or it is stopped.
    pub(crate) fn run(&self, rx: &mut dyn RecordRx) {
        let (mut tally, mut payload) = (Tally::default(), Vec::new());
        let error = loop {
            if !self.wait_for_room() {
                return;
            }
            match rx.recv(&mut payload) {
                Err(error) => break error,
                Ok(head) => {
                    if let Err(error) = self.take(head, &mut payload, &mut tally) {
                        break error.into();
                    }
                }
            }
        };
        if !lock(&self.state).stopped {
            self.host.failed(error);
        }
    }

    /// The syncing thread: until it is stopped, or the image cannot be brought to stable storage. `reached` is told each
    /// point that the image and its metadata have on stable storage.
    pub(crate) fn keep_synced(&self, image: &Image, reached: impl Fn(Next)) {
        while let Some(next) = self.wait_for_sync() {
            if let Err(error) = image.sync() {
                // After a takeover the guest hears of it, with its next flush.
                if !lock(&self.state).stopped {
                    self.host.failed(FollowError::Unsynced(error).into());
                }
                return;
            }
            let Some(next) = next else { continue };
            match self.history.reach(next, || !lock(&self.state).stopped) {
                Ok(true) => reached(next),
                Ok(false) => return,
                Err(error) => {
                    // Tried again; until then the older point serves as well: more would be copied.
                    let error = PluginError::from(error);
                    tracing::warn!(error = error.chain(), "the standby's metadata stay behind");
                    let state = lock(&self.state);
                    let waited = self.room.wait_timeout_while(state, SYNC_INTERVAL, |s| !s.stopped);
                    let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    let epoch = state.applied;
                    state.points.push_front((epoch, next));
                }
            }
        }
    }

    /// Waits until it is time to sync, or a point is applied, which is answered then. `None`: it is to stop.
    fn wait_for_sync(&self) -> Option<Option<Next>> {
        let due = |s: &State| s.points.front().is_some_and(|(epoch, _)| *epoch <= s.applied);
        let idle = |s: &mut State| !s.stopped && !due(s);
        let waited = self.room.wait_timeout_while(lock(&self.state), SYNC_INTERVAL, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.stopped {
            return None;
        }
        let point = if due(&state) { state.points.pop_front() } else { None };
        Some(point.map(|(_, next)| next))
    }

    #[cfg(test)]
    pub(crate) fn staged(&self) -> Epoch {
        lock(&self.state).staged
    }

    /// `false`: the reader is to stop.
    fn wait_for_room(&self) -> bool {
        let full = |s: &mut State| !s.stopped && s.bytes > self.limit / 2 && !s.epochs.is_empty();
        !wait_while(&self.room, lock(&self.state), full).stopped
    }

    /// `payload` is left with whatever it has: the next one may need its room.
    fn take(&self, head: RecordHead, payload: &mut Vec<u8>, tally: &mut Tally) -> Result<(), FollowError> {
        let RecordHead { epoch, kind } = head;
        let unexpected = || FollowError::Record(RecordError::Unexpected { kind, epoch });
        let (staged, copied) = {
            let state = lock(&self.state);
            (state.staged, state.copied)
        };
        let copying = staged == Epoch::COPY;
        let open = if copying { Epoch::COPY } else { staged.next() };
        match kind {
            kind::CHANGES if epoch == open => {
                tally.add_record(payload, self.size)?;
                if copying {
                    return self.apply_copy(payload);
                }
                let payload = self.received(payload);
                self.keep(Kept::Changes(payload))
            }
            kind::CHECK if epoch == open && !copying => {
                self.keep(Kept::Check(Check::parse(payload, self.size)?))
            }
            kind::COPIED if copying && !copied => {
                lock(&self.state).copied = true;
                Ok(())
            }
            kind::BARRIER if copied && epoch == open.max(Epoch::FIRST) => {
                let ((sent, next), got) = (parse_barrier(payload)?, tally.finish());
                if sent != got {
                    return Err(RecordError::Summary { epoch, sent, got }.into());
                }
                self.close(epoch, next);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    fn apply_copy(&self, payload: &[u8]) -> Result<(), FollowError> {
        match &*lock(&self.image) {
            Some(image) => self.carry_out(payload, image),
            None => Ok(()),
        }
    }

    /// What is short does not keep the memory of what is long: a third more is not counted.
    fn received(&self, received: &mut Vec<u8>) -> Vec<u8> {
        if received.len() <= received.capacity() / 4 * 3 {
            return received.clone();
        }
        // Room for every record there is: one that had to grow would get more than it needs.
        let mut next = self.pool.take();
        next.reserve_exact(MAX_BYTES.saturating_sub(next.len()));
        std::mem::replace(received, next)
    }

    /// Memory of what was applied; only such as suits the longest record.
    fn give_back(&self, records: Records) {
        let payloads = records.kept.into_iter().filter_map(Kept::payload);
        payloads.filter(|p| p.capacity() >= MAX_BYTES).for_each(|p| self.pool.give(p));
    }

    fn keep(&self, kept: Kept) -> Result<(), FollowError> {
        let bytes = match &kept {
            Kept::Changes(payload) => payload.len(),
            Kept::Check(_) => size_of::<Check>(),
        } + RECORD_COST;
        let mut state = lock(&self.state);
        if state.stopped {
            return Ok(());
        }
        if state.open.bytes + bytes > self.limit {
            return Err(FollowError::TooLarge { limit: self.limit });
        }
        state.open.kept.push(kept);
        state.open.bytes += bytes;
        state.bytes += bytes;
        Ok(())
    }

    /// The open epoch is complete.
    fn close(&self, epoch: Epoch, next: Option<Next>) {
        let mut state = lock(&self.state);
        if state.stopped {
            return;
        }
        let mut records = std::mem::take(&mut state.open);
        // Epochs without a write take room as well.
        records.bytes += RECORD_COST;
        state.bytes += RECORD_COST;
        let records = Arc::new(records);
        state.epochs.push_back((epoch, records));
        state.points.extend(next.map(|next| (epoch, next)));
        state.staged = epoch;
        drop(state);
        self.host.staged(epoch);
    }
}

fn differs(check: &Check, image: &Image) -> Result<bool, ImageError> {
    let mut ours = vec![0; check.len];
    image.read(check.offset, &mut ours)?;
    Ok(Check::of(check.offset, &ours) != *check)
}
