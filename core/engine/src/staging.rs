//! The primary's staging memory: where captured pages wait for the sender.
//!
//! ```text
//!  free ──take──► filling ──full──► filled ──hand over──► sender ──sent──► [held, if lent ──settled──►] free
//! ```
//! Allocated once, touched once, never grown; the transport's memory, where it lends any to send from. A capture that needs more
//! than is free hands over what it has and goes on when the sender has made some free: the pause becomes longer, nothing else
//! does. Which pages are in flight is in their epoch's bitmap,
//! so a batch is free as soon as it is sent; one in the transport's memory as soon as nothing reads there any more.

use crate::audit::Sealed;
use crate::bytes::Bytes;
use crate::memory::GuestMemory;
use aventine_api::{Epoch, LentMemory, PAGE_SIZE, PageBitmap, PageRun};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

/// Pages in one batch.
pub(crate) const BATCH_PAGES: usize = 256;

/// A batch of captured pages.
pub(crate) struct Batch {
    bytes: Bytes,
    used: usize,
    runs: Vec<(u64, usize)>,
}

impl Batch {
    const BYTES: usize = BATCH_PAGES * PAGE_SIZE;

    fn new(lent: Option<Box<dyn LentMemory>>) -> Batch {
        let mut bytes = lent.map_or_else(|| Bytes::Own(vec![0; Batch::BYTES]), Bytes::Lent);
        // Written, not only reserved: a page fault belongs to the start, not into a pause.
        bytes.iter_mut().step_by(PAGE_SIZE).for_each(|b| *b = 1);
        Batch { bytes, used: 0, runs: Vec::with_capacity(BATCH_PAGES) }
    }

    /// Copies as many of the `count` pages from `first` on as fit; answers how many.
    fn fill(&mut self, memory: &GuestMemory, first: u64, count: u64) -> u64 {
        let room = (self.bytes.len() - self.used) / PAGE_SIZE;
        let pages = room.min(usize::try_from(count).unwrap_or(room));
        let bytes = pages * PAGE_SIZE;
        memory.read(first, &mut self.bytes[self.used..self.used + bytes]);
        self.used += bytes;
        self.runs.push((first, bytes));
        pages as u64
    }

    fn is_full(&self) -> bool {
        self.used == self.bytes.len()
    }

    /// The captured runs.
    pub(crate) fn runs(&self) -> Vec<PageRun<'_>> {
        let mut at = 0;
        let run = |&(first_page, bytes): &(u64, usize)| {
            let data = &self.bytes[at..at + bytes];
            at += bytes;
            PageRun { first_page, data }
        };
        self.runs.iter().map(run).collect()
    }

    /// Number of pages in it.
    pub(crate) fn pages(&self) -> u64 {
        (self.used / PAGE_SIZE) as u64
    }

    /// Whether it may be read when it is sent.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.bytes, Bytes::Lent(_))
    }

    fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

/// What the sender gets, in order.
pub(crate) enum Job {
    /// The audit's part of the checkpoint, before its pages.
    Audit(Sealed),
    /// Pages of an epoch.
    Pages(Epoch, Batch),
    /// The end of a checkpoint.
    End {
        /// The epoch.
        epoch: Epoch,
        /// See [`aventine_protocol::CheckpointEnd::armed`].
        armed: bool,
        /// The device state.
        state: Vec<u8>,
    },
}

/// The sender has ended, and with it the link.
#[derive(Debug, thiserror::Error)]
#[error("The link to the standby is lost")]
pub(crate) struct SenderGone;

/// What a step of the initial copy did.
pub(crate) enum CopyStep {
    /// Captured `pages` pages; `next` is where to go on.
    Copied { pages: u64, next: u64 },
    /// No batch is free: the sender is slower.
    Full,
    /// No page is left; everything is with the sender.
    Done,
}

/// How far a capture has come.
pub(crate) struct Taken {
    /// Pages captured by this call.
    pub(crate) pages: u64,
    /// The page to go on from once staging has room; `None`: all are captured.
    pub(crate) rest: Option<u64>,
}

/// The staging memory.
pub(crate) struct Staging {
    free: Receiver<Batch>,
    filling: Option<Batch>,
    filled: Vec<Batch>,
    audit: Option<Sealed>,
    jobs: Sender<Job>,
}

impl Staging {
    /// Staging memory of `limit` bytes; answers it and the way back for sent batches. `lend` is asked for the memory of each.
    pub(crate) fn new(
        limit: u64,
        jobs: Sender<Job>,
        mut lend: impl FnMut(usize) -> Option<Box<dyn LentMemory>>,
    ) -> (Staging, Sender<Batch>) {
        let (back, free) = channel();
        let batches = (limit as usize / Batch::BYTES).max(2);
        (0..batches).for_each(|_| drop(back.send(Batch::new(lend(Batch::BYTES)))));
        (Staging { free, filling: None, filled: Vec::with_capacity(batches), audit: None, jobs }, back)
    }

    /// The checkpoint to be captured has this part of the audit.
    pub(crate) fn audit(&mut self, sealed: Sealed) {
        self.audit = Some(sealed);
    }

    /// Captures the pages of `dirty` from `from` on, without waiting. Where staging is full, the sender gets what there is.
    pub(crate) fn capture(
        &mut self,
        epoch: Epoch,
        dirty: &PageBitmap,
        from: u64,
        memory: &GuestMemory,
    ) -> Result<Taken, SenderGone> {
        let mut pages = 0;
        for (mut first, mut count) in dirty.runs_from(from) {
            while count > 0 {
                if self.filling.is_none() && !self.take()? {
                    self.hand_over_filled(epoch)?;
                    return Ok(Taken { pages, rest: Some(first) });
                }
                let done = self.fill(memory, first, count);
                first += done;
                count -= done;
                pages += done;
            }
        }
        Ok(Taken { pages, rest: None })
    }

    /// Waits for room; `false`: for so long there was none.
    pub(crate) fn await_room(&mut self, limit: Duration) -> Result<bool, SenderGone> {
        if self.filling.is_none() {
            match self.free.recv_timeout(limit) {
                Ok(batch) => self.filling = Some(batch),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Err(SenderGone),
            }
        }
        Ok(true)
    }

    /// Captures pages of `dirty` from `at` on while a batch is free, without waiting. For the initial copy.
    pub(crate) fn capture_some(
        &mut self,
        dirty: &PageBitmap,
        at: u64,
        memory: &GuestMemory,
    ) -> Result<CopyStep, SenderGone> {
        let Some((first, count)) = dirty.runs_from(at).next() else {
            self.hand_over(Epoch::COPY)?;
            return Ok(CopyStep::Done);
        };
        if self.filling.is_none() && !self.take()? {
            return Ok(CopyStep::Full);
        }
        let pages = self.fill(memory, first, count);
        self.hand_over_filled(Epoch::COPY)?;
        Ok(CopyStep::Copied { pages, next: first + pages })
    }

    /// Fills the open batch, which is there.
    fn fill(&mut self, memory: &GuestMemory, first: u64, count: u64) -> u64 {
        let Some(batch) = &mut self.filling else { return 0 };
        let done = batch.fill(memory, first, count);
        if batch.is_full() {
            self.filled.extend(self.filling.take());
        }
        done
    }

    /// Gives everything captured to the sender. Called when the guest runs again.
    pub(crate) fn hand_over(&mut self, epoch: Epoch) -> Result<(), SenderGone> {
        self.filled.extend(self.filling.take());
        self.hand_over_filled(epoch)
    }

    /// Ends the checkpoint: everything captured, then its end.
    pub(crate) fn finish(&mut self, epoch: Epoch, armed: bool, state: Vec<u8>) -> Result<(), SenderGone> {
        self.hand_over(epoch)?;
        self.jobs.send(Job::End { epoch, armed, state }).map_err(|_| SenderGone)
    }

    fn hand_over_filled(&mut self, epoch: Epoch) -> Result<(), SenderGone> {
        if let Some(sealed) = self.audit.take() {
            self.jobs.send(Job::Audit(sealed)).map_err(|_| SenderGone)?;
        }
        self.filled.drain(..).try_for_each(|b| self.jobs.send(Job::Pages(epoch, b)).map_err(|_| SenderGone))
    }

    /// Opens a batch, if one is free.
    fn take(&mut self) -> Result<bool, SenderGone> {
        match self.free.try_recv() {
            Ok(batch) => self.filling = Some(batch),
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => return Err(SenderGone),
        }
        Ok(true)
    }
}

/// Makes a sent batch free again.
pub(crate) fn recycle(back: &Sender<Batch>, mut batch: Batch) {
    batch.clear();
    // The loop may have ended: then nobody needs the batch.
    let _ = back.send(batch);
}
