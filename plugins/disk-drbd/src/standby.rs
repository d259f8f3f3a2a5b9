//! The standby: keeps each epoch's records until DRBD has them on both sides, and replays what is left after a takeover.
//!
//! ```text
//!  Describe ─► open epoch: changes are kept ─► Barrier(n), checked ─► staged ─► committed ─► Both(n): forgotten
//!                  ▲                                  │                            └─► activate: replayed
//!                  └──────────────────────────────────┘
//! ```
//! Invariants:
//! - Nothing of this reaches the device before the takeover: until then it is the primary's DRBD that writes to it, and that
//!   only what is committed.
//! - What DRBD may lack is exactly in the epochs that are kept: an epoch is forgotten only when the primary's DRBD has had it
//!   on both sides. So the device becomes that of the last committed epoch when all kept epochs are replayed in order,
//!   whatever part of them it has, and in whatever state DRBD calls it.
//! - Memory: the primary holds its guest back at a quarter of the buffer, counting just what is kept here. More than the
//!   whole is an error, which takes a wrong configuration.

use crate::apply::carry_out;
use crate::wire::{self, RecordError, Summary, Tally, changes, kind};
use aventine_api::{Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx};
use aventine_disk_common::image::{Image, ImageError};
use aventine_disk_common::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// What a kept record takes in memory beside its payload, and an epoch beside its records.
const RECORD_COST: usize = 64;

/// Why the primary cannot be followed any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("The disk's channel carries what does not make sense")]
    Record(#[from] RecordError),
    #[error(
        "More than {limit} bytes of disk writes are not on both sides. Set `buffer` of this disk to the same on both hosts"
    )]
    TooLarge { limit: usize },
}

impl From<FollowError> for PluginError {
    fn from(error: FollowError) -> PluginError {
        let code = match &error {
            FollowError::Record(_) => ErrorCode::Corrupt,
            FollowError::TooLarge { .. } => ErrorCode::Limit,
        };
        PluginError::new(code, error)
    }
}

/// Why an epoch could not be committed or taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EpochError {
    #[error("Epoch {epoch} cannot be committed: the disk is complete up to epoch {staged} only")]
    NotStaged { epoch: Epoch, staged: Epoch },
    #[error("Nothing can be taken over: no epoch of the disk is committed")]
    NothingCommitted,
    #[error("Epoch {epoch} cannot be taken over: DRBD has {both}, and {committed} is the last one committed")]
    OutOfReach { epoch: Epoch, both: Epoch, committed: Epoch },
    #[error("Epoch {epoch} could not be replayed; the device is between two epochs")]
    Replay { epoch: Epoch, source: ImageError },
    #[error("Epoch {epoch} could not be replayed")]
    Record { epoch: Epoch, source: RecordError },
}

impl From<EpochError> for PluginError {
    fn from(error: EpochError) -> PluginError {
        let code =
            if matches!(error, EpochError::Replay { .. }) { ErrorCode::Io } else { ErrorCode::Refused };
        PluginError::new(code, error)
    }
}

/// What has arrived and may be needed.
pub(crate) struct Staging {
    state: Mutex<State>,
    size: u64,
    limit: usize,
    host: Arc<dyn Host>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    /// Records of the epoch whose barrier has not come.
    open: Records,
    /// Complete epochs that may not be on both sides, ascending.
    epochs: VecDeque<(Epoch, Records)>,
    staged: Epoch,
    committed: Epoch,
    /// DRBD has everything up to here.
    both: Epoch,
    bytes: usize,
}

#[derive(Default)]
struct Records {
    payloads: Vec<Vec<u8>>,
    bytes: usize,
}

impl Staging {
    pub(crate) fn new(size: u64, limit: usize, host: Arc<dyn Host>) -> Staging {
        Staging { state: Mutex::default(), size, limit, host }
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

    /// Whether `epoch` can be taken over, and if so, forgets everything after it, for good.
    pub(crate) fn cut(&self, epoch: Epoch) -> Result<(), EpochError> {
        let mut state = lock(&self.state);
        let (both, committed) = (state.both, state.committed);
        if committed == Epoch::COPY {
            return Err(EpochError::NothingCommitted);
        }
        if !(both.max(Epoch::FIRST)..=committed).contains(&epoch) {
            return Err(EpochError::OutOfReach { epoch, both, committed });
        }
        state.stopped = true;
        state.committed = epoch;
        state.epochs.retain(|(of, _)| *of <= epoch);
        state.open = Records::default();
        state.bytes = state.epochs.iter().map(|(_, r)| r.bytes).sum();
        Ok(())
    }

    /// Whether there is anything to replay.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).epochs.iter().all(|(_, records)| records.payloads.is_empty())
    }

    /// After [`Staging::cut`]: carries out what is kept, in order. May be done again.
    pub(crate) fn replay(&self, image: &Image) -> Result<(), EpochError> {
        let epochs = std::mem::take(&mut lock(&self.state).epochs);
        let done = epochs.iter().try_for_each(|(epoch, records)| {
            records.payloads.iter().flat_map(|payload| changes(payload, self.size)).try_for_each(|change| {
                let change = change.map_err(|source| EpochError::Record { epoch: *epoch, source })?;
                carry_out(&change, image).map_err(|source| EpochError::Replay { epoch: *epoch, source })
            })
        });
        let mut state = lock(&self.state);
        match done {
            Ok(()) => state.bytes = 0,
            Err(_) => state.epochs = epochs,
        }
        done
    }

    /// Nothing more is taken or reported.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
    }

    /// The reading thread: until the channel ends, something does not make sense, or it is stopped.
    pub(crate) fn run(&self, rx: &mut dyn RecordRx) {
        let mut tally = Tally::default();
        let error = loop {
            let mut payload = Vec::new();
            match rx.recv(&mut payload) {
                _ if lock(&self.state).stopped => return,
                Err(error) => break error,
                Ok(head) => {
                    if let Err(error) = self.take(head, payload, &mut tally) {
                        break error.into();
                    }
                }
            }
        };
        if !lock(&self.state).stopped {
            self.host.failed(error);
        }
    }

    fn take(&self, head: RecordHead, payload: Vec<u8>, tally: &mut Tally) -> Result<(), FollowError> {
        let RecordHead { epoch, kind } = head;
        let open = lock(&self.state).staged.next();
        match kind {
            kind::CHANGES if epoch == open => {
                tally.add_record(&payload, self.size)?;
                self.keep(payload)
            }
            kind::BARRIER if epoch == open => {
                let (sent, got) = (Summary::parse(&payload)?, tally.finish());
                if sent != got {
                    return Err(RecordError::Summary { epoch, sent, got }.into());
                }
                self.close(epoch);
                Ok(())
            }
            kind::BOTH => self.forget(wire::parse_both(&payload)?),
            _ => Err(RecordError::Unexpected { kind, epoch }.into()),
        }
    }

    fn keep(&self, payload: Vec<u8>) -> Result<(), FollowError> {
        let bytes = payload.capacity() + RECORD_COST;
        let mut state = lock(&self.state);
        if state.stopped {
            return Ok(());
        }
        if state.bytes + bytes > self.limit {
            return Err(FollowError::TooLarge { limit: self.limit });
        }
        state.open.payloads.push(payload);
        state.open.bytes += bytes;
        state.bytes += bytes;
        Ok(())
    }

    /// The open epoch is complete.
    fn close(&self, epoch: Epoch) {
        let mut state = lock(&self.state);
        if state.stopped {
            return;
        }
        let mut records = std::mem::take(&mut state.open);
        // Epochs without a write take room as well.
        records.bytes += RECORD_COST;
        state.bytes += RECORD_COST;
        state.epochs.push_back((epoch, records));
        state.staged = epoch;
        drop(state);
        self.host.staged(epoch);
    }

    fn forget(&self, epoch: Epoch) -> Result<(), FollowError> {
        let mut state = lock(&self.state);
        if state.stopped {
            return Ok(());
        }
        // The primary gives DRBD nothing before this side has said that it is committed.
        if epoch > state.committed {
            return Err(RecordError::Unexpected { kind: kind::BOTH, epoch }.into());
        }
        let count = state.epochs.iter().take_while(|(of, _)| *of <= epoch).count();
        let gone: Vec<_> = state.epochs.drain(..count).collect();
        state.bytes -= gone.iter().map(|(_, r)| r.bytes).sum::<usize>();
        state.both = state.both.max(epoch);
        drop(state);
        drop(gone);
        Ok(())
    }
}
