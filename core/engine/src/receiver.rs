//! The standby's receiver: stages checkpoints as they arrive, and verifies them before anyone hears of them.
//!
//! Pages of the initial copy go straight into the memory image: there is no checkpoint yet that they could damage.
//! Every later epoch is kept as it came, in buffers that are used again, until it is committed and applied. When more
//! than the configured staging memory is in use and a whole checkpoint is waiting to be applied, the receiver stops
//! reading, and the primary feels it. A single checkpoint may be larger than that: it is at most the guest's memory, each
//! page once, and one device state.

use crate::bytes::Bytes;
use crate::memory::GuestMemory;
use crate::staging::BATCH_PAGES;
use crate::wire::{FrameRx, WireError};
use aventine_api::{Codec, Epoch, ErrorCode, PAGE_SIZE, PluginError};
use aventine_protocol::{AuditRecord, CheckpointEnd, FrameHeader, FrameKind, MessageError, PayloadHash};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a checkpoint takes in staging memory beside its pages and its device state.
const CHECKPOINT_COST: u64 = 256;
/// Most bytes that a codec may need for a page beside its contents.
const PAGE_COST: usize = 64;
/// Longest payload that a batch of pages becomes: the length of the buffers that the transport is asked to lend.
pub(crate) const LONGEST_BATCH: usize = BATCH_PAGES * (PAGE_SIZE + PAGE_COST);

/// A checkpoint, complete and checked.
pub(crate) struct Checkpoint {
    pub(crate) epoch: Epoch,
    pub(crate) armed: bool,
    pub(crate) pages: Vec<Bytes>,
    /// Payloads of [`AuditRecord`]s, checked.
    pub(crate) audit: Vec<Vec<u8>>,
    pub(crate) state: Vec<u8>,
    /// From the head of its first frame to its end.
    pub(crate) receiving: Duration,
    /// When it was complete.
    pub(crate) staged_at: Instant,
    /// Bytes of staging memory that it takes.
    held: u64,
}

/// Why the stream of checkpoints was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The channel or its framing failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The codec does not accept a payload.
    #[error("A batch of pages of epoch {epoch} cannot be decoded")]
    Pages {
        /// The epoch.
        epoch: Epoch,
        /// Why.
        source: PluginError,
    },
    /// A part of another epoch.
    #[error("Part of epoch {got} arrived inside epoch {expected}")]
    Epoch {
        /// The part's epoch.
        got: Epoch,
        /// The one being staged.
        expected: Epoch,
    },
    /// More than a checkpoint of this guest can have.
    #[error("Epoch {0} has more pages or device state than the guest, or an empty batch of pages")]
    Excess(Epoch),
    /// The end of the checkpoint does not agree with what arrived.
    #[error("Epoch {0} is not what the primary sent: frames, pages or device state are missing or differ")]
    Incomplete(Epoch),
    /// Hashes that the configuration asks nobody to send.
    #[error(
        "Epoch {epoch} holds hashes of {pages} pages, and this side's `audit` setting expects {limit} at most"
    )]
    Audit {
        /// The epoch.
        epoch: Epoch,
        /// How many came.
        pages: u64,
        /// The most there can be.
        limit: u64,
    },
    /// A damaged end of a checkpoint, or damaged hashes in it.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl ReceiveError {
    /// The same as a plugin's error: a lost peer stays one, everything else is damage.
    pub(crate) fn into_plugin_error(self) -> PluginError {
        match self {
            ReceiveError::Wire(e) => e.into_plugin_error(),
            other => PluginError::new(ErrorCode::Corrupt, other),
        }
    }
}

/// Memory and decoder of the standby, used by the receiver (initial copy) and the loop (applying).
pub(crate) struct Image {
    pub(crate) memory: GuestMemory,
    pub(crate) codec: Box<dyn Codec>,
}

impl Image {
    /// Brings a batch into memory.
    pub(crate) fn decode(&mut self, payload: &[u8]) -> Result<(), PluginError> {
        self.codec.decode(payload, &mut self.memory)
    }
}

/// Staging memory in use, and the buffers that are free.
pub(crate) struct Buffers {
    limit: u64,
    state: Mutex<InUse>,
    changed: Condvar,
}

#[derive(Default)]
struct InUse {
    bytes: u64,
    /// Whole checkpoints that are not applied yet.
    whole: u32,
    free: Vec<Vec<u8>>,
    closed: bool,
}

impl Buffers {
    pub(crate) fn new(limit: u64) -> Arc<Buffers> {
        Arc::new(Buffers { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Waits until there may be another frame; `spare` is a buffer for it, if one is free.
    fn take(&self, spare: &mut Vec<u8>) {
        let state = self.lock();
        let full = |s: &mut InUse| s.bytes > self.limit && s.whole > 0 && !s.closed;
        let mut state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        if spare.capacity() == 0 {
            *spare = state.free.pop().unwrap_or_default();
        }
    }

    fn staged(&self, bytes: u64) {
        self.lock().bytes += bytes;
    }

    fn whole(&self) {
        self.lock().whole += 1;
    }

    /// The checkpoint is applied: its buffers are free.
    pub(crate) fn recycle(&self, checkpoint: Checkpoint) {
        let mut state = self.lock();
        state.bytes -= checkpoint.held;
        state.whole -= 1;
        // What is kept for later is bounded like what is in use.
        let room = (self.limit >> 20).max(1) as usize;
        let pages = checkpoint.pages.into_iter().filter_map(Bytes::into_own);
        state.free.extend(pages.chain(checkpoint.audit));
        state.free.truncate(room);
        self.changed.notify_all();
    }

    /// Nothing waits for room any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InUse> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has arrived of the epoch being staged.
struct Stage {
    epoch: Epoch,
    pages: Vec<Bytes>,
    page_count: u64,
    audit: Vec<Vec<u8>>,
    audited_pages: u64,
    frames: u32,
    hashes: Vec<u8>,
    state: Option<Vec<u8>>,
    /// When its first frame began.
    begun: Option<Instant>,
    held: u64,
}

impl Stage {
    fn new(epoch: Epoch) -> Stage {
        Stage {
            epoch,
            pages: Vec::new(),
            page_count: 0,
            audit: Vec::new(),
            audited_pages: 0,
            frames: 0,
            hashes: Vec::new(),
            state: None,
            begun: None,
            held: CHECKPOINT_COST,
        }
    }

    fn add(&mut self, header: &FrameHeader, begun: Instant) -> Result<(), ReceiveError> {
        if header.epoch != self.epoch {
            return Err(ReceiveError::Epoch { got: header.epoch, expected: self.epoch });
        }
        self.begun.get_or_insert(begun);
        self.frames += 1;
        self.hashes.extend(header.payload_hash.to_le_bytes());
        Ok(())
    }

    /// Takes a batch of `count` pages, unless it is more than a guest of `guest_pages` pages can have changed.
    fn add_pages(&mut self, payload: Bytes, count: u64, guest_pages: u64) -> Result<(), ReceiveError> {
        self.page_count = self.page_count.saturating_add(count);
        let most = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE + PAGE_COST);
        if count == 0 || self.page_count > guest_pages || payload.len() > most {
            return Err(ReceiveError::Excess(self.epoch));
        }
        self.held += payload.len() as u64;
        self.pages.push(payload);
        Ok(())
    }

    fn add_state(&mut self, payload: Vec<u8>) -> Result<(), ReceiveError> {
        self.held += payload.len() as u64;
        match self.state.replace(payload) {
            None => Ok(()),
            Some(_) => Err(ReceiveError::Excess(self.epoch)),
        }
    }

    /// The whole checkpoint, if it is what `end` says.
    fn complete(self, end: &CheckpointEnd) -> Result<Checkpoint, ReceiveError> {
        let Some(state) = self.state else { return Err(ReceiveError::Incomplete(self.epoch)) };
        let arrived = CheckpointEnd {
            armed: end.armed,
            frames: self.frames,
            pages: self.page_count,
            state_len: state.len() as u32,
            digest: PayloadHash::of(&[&self.hashes]),
        };
        if arrived != *end {
            return Err(ReceiveError::Incomplete(self.epoch));
        }
        let Stage { epoch, pages, audit, held, begun, .. } = self;
        let staged_at = Instant::now();
        let receiving = begun.map_or(Duration::ZERO, |begun| staged_at - begun);
        Ok(Checkpoint { epoch, armed: end.armed, pages, audit, state, receiving, staged_at, held })
    }
}

/// Receives until the channel ends or something is wrong; gives each whole checkpoint to `staged`. A checkpoint may hold
/// hashes of up to `audit_limit` pages.
pub(crate) fn run(
    mut rx: FrameRx,
    image: &Mutex<Image>,
    buffers: &Buffers,
    audit_limit: u64,
    staged: impl Fn(Checkpoint),
    copied: impl Fn(u64),
) -> Result<(), ReceiveError> {
    let mut stage = Stage::new(Epoch::FIRST);
    let mut spare = Vec::new();
    loop {
        buffers.take(&mut spare);
        let (header, payload) = rx.recv_lent(&mut spare)?;
        match header.kind {
            FrameKind::Pages => {
                let mut image = image.lock().unwrap_or_else(PoisonError::into_inner);
                let guest_pages = image.memory.pages();
                let wrong = |source| ReceiveError::Pages { epoch: header.epoch, source };
                let pages = image.codec.check(&payload, guest_pages).map_err(wrong)?;
                if header.epoch == Epoch::COPY && stage.epoch == Epoch::FIRST && stage.frames == 0 {
                    image.decode(&payload).map_err(wrong)?;
                    copied(u64::from(header.length));
                    continue;
                }
                drop(image);
                stage.add(&header, rx.begun())?;
                buffers.staged(u64::from(header.length));
                stage.add_pages(payload, pages, guest_pages)?;
            }
            FrameKind::Audit => {
                let guest_pages = image.lock().unwrap_or_else(PoisonError::into_inner).memory.pages();
                stage.audited_pages += AuditRecord::decode(&payload, guest_pages)?.pages();
                if stage.audited_pages > audit_limit {
                    let (epoch, pages) = (header.epoch, stage.audited_pages);
                    return Err(ReceiveError::Audit { epoch, pages, limit: audit_limit });
                }
                stage.add(&header, rx.begun())?;
                buffers.staged(u64::from(header.length));
                stage.held += u64::from(header.length);
                stage.audit.push(payload.into_vec());
            }
            FrameKind::State => {
                stage.add(&header, rx.begun())?;
                buffers.staged(u64::from(header.length));
                stage.add_state(payload.into_vec())?;
            }
            FrameKind::CheckpointEnd => {
                if header.epoch != stage.epoch {
                    return Err(ReceiveError::Epoch { got: header.epoch, expected: stage.epoch });
                }
                let next = Stage::new(stage.epoch.next());
                let whole =
                    std::mem::replace(&mut stage, next).complete(&CheckpointEnd::decode(&payload)?)?;
                buffers.staged(CHECKPOINT_COST);
                buffers.whole();
                staged(whole);
            }
            other => return Err(WireError::Kind(other).into()),
        }
    }
}
