//! The audit: whether the standby's memory is what the primary's was, page by page, by hash.
//!
//! A dirty page that tracking misses changes nothing until a takeover resumes from an image that never was. The audit
//! finds it: guest memory is gone over in slices, one for each epoch, and a pass over all of it takes as many epochs as
//! the configuration says (more where the epochs are too short to hash a slice).
//!
//! ```text
//!  primary             resume(n-1) ── guest runs: a thread hashes the slice ── pause(n) · dirty(n) · seal ── resume(n)
//!                          begin                                                  │ what is hashed by now
//!                                                                                 ▼
//!  sender                        pages of the slice that are dirty in n: hashed as they were captured ─► Audit frames
//!  standby                                commit(n) ─► acknowledge(n) ─► apply(n) ─► hash the same pages, compare
//! ```
//! Invariants:
//! - Every hash in the checkpoint of *n* is of the page as it was at the seal of *n*. A page that is not dirty in *n* was
//!   not written since the dirty scan of *n-1*, and its hashing began after that scan: nothing but a checkpoint may take
//!   dirty bits while a slice is open. A page that is dirty in *n* is hashed from the captured copy.
//! - A page whose dirty bit is lost while its slice is hashed may escape this pass, and differs in the next.
//! - Nothing is hashed and nothing is waited for inside the pause. What is not hashed by then comes in a later epoch.
//! - The acknowledgement of *n+1* says that the slice of *n* was equal: the standby compares before it goes on, and
//!   acknowledges nothing more once something differed.
//! - Holes in guest memory stay holes on both sides: they are known to be zeros.
//!
//! A difference ends the session for good: the standby renounces it, and the primary makes a new copy of all memory
//! that is in use, whatever was ever seen to be dirty.

mod primary;
mod standby;

pub(crate) use primary::{Auditor, Sealed};
pub(crate) use standby::Checker;

use crate::control::AuditStatus;
use crate::memory::GuestMemory;
use aventine_api::{Epoch, PAGE_SIZE};
use aventine_protocol::{AUDIT_NAMED, AuditRecord};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Pages read and hashed at once: 256 KiB, which stays in a processor's cache.
const BLOCK_PAGES: usize = 64;

/// Pages that a text names: as many as a message between the hosts has room for, with some left.
const LISTED: usize = 32;

/// Pages of one epoch's slice.
pub(crate) fn slice_pages(guest_pages: u64, every: u32) -> u64 {
    guest_pages.div_ceil(every.into()).max(1)
}

/// Reads and hashes pages.
struct Hasher {
    block: Box<[u8]>,
    zeros: u64,
}

impl Hasher {
    fn new() -> Hasher {
        Hasher {
            block: vec![0; BLOCK_PAGES * PAGE_SIZE].into_boxed_slice(),
            zeros: AuditRecord::hash(&[0; PAGE_SIZE]),
        }
    }

    /// The hashes of the next `pages` pages from `first` on, at least one of them and at most a block.
    fn block(
        &mut self,
        memory: &GuestMemory,
        first: u64,
        pages: usize,
    ) -> impl ExactSizeIterator<Item = u64> {
        let pages = pages.min(BLOCK_PAGES);
        let hole = memory.next_used(first) >= first + pages as u64;
        let (bytes, zeros) = (&mut self.block[..pages * PAGE_SIZE], self.zeros);
        if !hole {
            memory.read_sparse(first, bytes);
        }
        let bytes = &*bytes;
        bytes.chunks_exact(PAGE_SIZE).map(move |page| if hole { zeros } else { AuditRecord::hash(page) })
    }
}

/// Processor time of the calling thread: the time of others that it waits for is not the audit's.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Guest pages that are not the same on the two hosts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "The audit found guest memory that differs between the two hosts at epoch {epoch}: {}; the standby's image is \
     discarded, and protection begins anew with a full copy",
    self.list()
)]
pub(crate) struct Divergence {
    pub(crate) epoch: Epoch,
    /// How many were found.
    pub(crate) total: u64,
    /// The first of them: the page, and where it is (region, byte in it).
    named: Vec<(u64, usize, u64)>,
}

impl Divergence {
    /// `pages` of `memory`; those that it does not have, as a hostile peer may name them, are left out.
    pub(crate) fn new(epoch: Epoch, total: u64, pages: &[u64], memory: &GuestMemory) -> Divergence {
        let place = |&page: &u64| memory.place(page).map(|(region, byte)| (page, region, byte));
        Divergence { epoch, total, named: pages.iter().take(AUDIT_NAMED).filter_map(place).collect() }
    }

    /// The numbers of the pages that are named.
    pub(crate) fn pages(&self) -> Vec<u64> {
        self.named.iter().map(|&(page, ..)| page).collect()
    }

    fn list(&self) -> String {
        let mut parts = Vec::new();
        for (page, region, byte) in self.named.iter().take(LISTED) {
            let ram = page * PAGE_SIZE as u64;
            parts
                .push(format!("page {page} (byte {ram:#x} of guest RAM, byte {byte:#x} of region {region})"));
        }
        let more = self.total.saturating_sub(parts.len() as u64);
        parts.extend((more > 0).then(|| format!("{more} more")));
        parts.join(", ")
    }
}

/// What one side knows about its audit, over all sessions.
struct Book {
    status: AuditStatus,
    guest_pages: u64,
    /// Where and when the pass under way began; `None` before its first page.
    pass: Option<(Epoch, Instant)>,
    /// Since when the processor time counts, and what it was then.
    since: (Instant, Duration),
}

impl Book {
    /// Goes on from what `before` says, which an earlier session left.
    fn new(every: u32, guest_pages: u64, before: Option<AuditStatus>) -> Book {
        let status = AuditStatus { every: every.into(), ..before.unwrap_or_default() };
        Book { status, guest_pages, pass: None, since: (Instant::now(), Duration::ZERO) }
    }

    /// A session begins: no page of it was compared yet. `spent` is all the processor time so far.
    fn begin_session(&mut self, spent: Duration) {
        (self.pass, self.since) = (None, (Instant::now(), spent));
    }

    /// These pages were the same at the end of `epoch`. In a session each call goes on where the last one ended.
    fn equal(&mut self, epoch: Epoch, first: u64, pages: u64) {
        if first == 0 {
            self.pass = Some((epoch, Instant::now()));
        }
        self.status.pages += pages;
        if first + pages == self.guest_pages
            && let Some((begin, at)) = self.pass.take()
        {
            self.status.passes += 1;
            self.status.last_pass_epoch = epoch.0;
            self.status.last_pass_epochs = epoch.0 - begin.0 + 1;
            self.status.last_pass_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }

    fn different(&mut self, found: &Divergence) {
        self.status.mismatches = self.status.mismatches.saturating_add(found.total);
        self.status.last_mismatch = found.to_string();
    }

    /// `spent` is the processor time spent on hashing so far.
    fn status(&self, spent: Duration) -> AuditStatus {
        let (began, before) = self.since;
        let share = spent.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64().max(1e-3);
        AuditStatus { hashing_percent: (share * 1e4).round() / 1e2, ..self.status.clone() }
    }
}

#[cfg(test)]
mod tests;
