//! Soft-dirty bits: what Linux had before 6.7.
//!
//! ```text
//!             4 ─► /proc/PID/clear_refs        first write: the kernel sets bit 55 of the page's entry in /proc/PID/pagemap
//! QEMU's page ─────────────────────────► clean ◄──────────────────────────────────────────► soft-dirty
//! ```
//!
//! What makes a lost bit impossible:
//! - Reading and clearing are two steps, and clearing takes the bits of the whole process: a write in between would be
//!   lost. So both are done while no virtual CPU runs and no device I/O is in flight, when nothing writes guest memory.
//!   A guest that runs has to be paused for it ([`super::Tracker::needs_pause`]): reading without clearing would miss
//!   nothing either, but the rounds of an initial copy would never get smaller.
//! - A bit is in the page table entry, and is gone when reclaim drops the entry. So guest RAM is locked into memory, page
//!   by page as it is touched; moving a locked page elsewhere keeps its bit. QEMU takes no page away by itself: what would
//!   make it do so is refused by `inspect`.
//! - An entry that was never filled is clean, and QEMU's first write fills it and sets the bit, also where others have put
//!   the page there before. Its first read does not.
//! - A mapping that has gone away shows no page at all. Before the bits are cleared it must still be there.
//! - A new mapping counts as written in whole: too much, never too little.

use super::{Mapping, Owner, TrackError, covers, find_mappings, forbid_huge_pages};
use crate::inject::{self, InjectError, StoppedProcess};
use aventine_api::{PAGE_SIZE, PageBitmap};
use rustix::fd::OwnedFd;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Pid;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

/// In an entry of `pagemap`.
const SOFT_DIRTY: u64 = 1 << 55;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// Entries read at once.
const BATCH: usize = 16 << 10;
/// For `clear_refs`.
const CLEAR: &[u8] = b"4";

/// Tracks the pages of one file written through the mappings of one process.
pub(crate) struct SoftDirty {
    pid: Pid,
    memory: OwnedFd,
    pagemap: File,
    clear: File,
    mappings: Vec<Mapping>,
    entries: Vec<u8>,
}

impl SoftDirty {
    /// Locks the pages of `memory` (of `bytes`) in `pid` and begins. Writes that race with this are before the beginning.
    pub(super) fn start(
        pid: Pid,
        owner: Owner,
        memory: BorrowedFd<'_>,
        bytes: u64,
    ) -> Result<SoftDirty, TrackError> {
        let mappings = find_mappings(pid, memory)?;
        if !covers(&mappings, bytes) {
            return Err(TrackError::Layout { pid });
        }
        lock(pid, owner, &mappings)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(TrackError::Map)?;
        let clear =
            File::options().write(true).open(format!("/proc/{pid}/clear_refs")).map_err(TrackError::Map)?;
        let memory = memory.try_clone_to_owned().map_err(TrackError::Map)?;
        let entries = vec![0; BATCH * ENTRY];
        let tracker = SoftDirty { pid, memory, pagemap, clear, mappings, entries };
        tracker.clear()?;
        Ok(tracker)
    }

    /// Guest paused: see [`super::Tracker::scan`].
    pub(super) fn scan(&mut self, dirty: &mut PageBitmap) -> Result<(), TrackError> {
        for m in &self.mappings {
            let (first, pages) = (m.offset / PAGE_SIZE as u64, (m.end - m.start) / PAGE_SIZE as u64);
            let mut done = 0;
            while done < pages {
                let batch = (pages - done).min(BATCH as u64);
                let entries = &mut self.entries[..batch as usize * ENTRY];
                let at = (m.start / PAGE_SIZE as u64 + done) * ENTRY as u64;
                self.pagemap.read_exact_at(entries, at).map_err(gone_or(TrackError::Scan))?;
                note(entries, first + done, dirty);
                done += batch;
            }
        }
        // Before the bits go: entries of a mapping that is not there any more look clean.
        match find_mappings(self.pid, std::os::fd::AsFd::as_fd(&self.memory)) {
            Ok(mappings) if mappings == self.mappings => self.clear(),
            Ok(_) | Err(_) => Err(TrackError::Gone),
        }
    }

    fn clear(&self) -> Result<(), TrackError> {
        self.clear.write_all_at(CLEAR, 0).map_err(gone_or(TrackError::Scan))
    }
}

/// Sets the bits of dirty pages, run by run.
fn note(entries: &[u8], first: u64, dirty: &mut PageBitmap) {
    let (entries, _) = entries.as_chunks::<ENTRY>();
    let mut at = 0;
    while at < entries.len() {
        let written = |entry: &[u8; ENTRY]| u64::from_ne_bytes(*entry) & SOFT_DIRTY != 0;
        let run = entries[at..].iter().take_while(|entry| written(entry)).count();
        dirty.set_range(first + at as u64, run as u64);
        at += run + 1;
    }
}

/// Neither file tells anything of a process that is gone.
fn gone_or(otherwise: impl Fn(io::Error) -> TrackError) -> impl Fn(io::Error) -> TrackError {
    move |error| match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::UnexpectedEof, _) | (_, Some(libc::ESRCH)) => TrackError::Gone,
        _ => otherwise(error),
    }
}

/// Has the process lock its pages of guest RAM, each when it is first touched.
fn lock(pid: Pid, owner: Owner, mappings: &[Mapping]) -> Result<(), TrackError> {
    let instruction = inject::find_instruction(pid)?;
    let work = || {
        let mut stopped = StoppedProcess::stop(pid, instruction)?;
        let locked = forbid_huge_pages(&mut stopped, mappings).and_then(|()| {
            mappings.iter().try_for_each(|m| {
                let arguments = [m.start, m.end - m.start, u64::from(libc::MLOCK_ONFAULT)];
                stopped.call("mlock2", libc::SYS_mlock2, arguments).map(drop)
            })
        });
        stopped.resume()?;
        locked
    };
    let locked = match owner {
        Owner::Us => work(),
        Owner::Others => inject::apart(|| work().map(|()| 0).map_err(Into::into)).map(drop),
    };
    locked.map_err(|error| match error {
        InjectError::Call { .. } => TrackError::Lock(error),
        other => TrackError::Inject(other),
    })
}

/// Whether this kernel has soft-dirty bits: without them a page that was just written does not show one.
pub(super) fn is_supported() -> bool {
    let probe = || -> io::Result<bool> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice, written inside and taken away again.
        let (page, written) = unsafe {
            let page = rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE, prot, flags)?;
            page.cast::<u8>().write_volatile(1);
            let mut entry = [0; ENTRY];
            let at = page as u64 / PAGE_SIZE as u64 * ENTRY as u64;
            let read = File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, at));
            (page, read.map(|()| u64::from_ne_bytes(entry) & SOFT_DIRTY != 0))
        };
        // SAFETY: the mapping made above, which nothing refers to.
        unsafe { rustix::mm::munmap(page, PAGE_SIZE)? };
        written
    };
    probe().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_runs() {
        let mut dirty = PageBitmap::new(10);
        let entries = [1, SOFT_DIRTY, SOFT_DIRTY | 7, 0, SOFT_DIRTY].map(u64::to_ne_bytes).concat();
        note(&entries, 3, &mut dirty);
        assert_eq!(dirty.runs().collect::<Vec<_>>(), [(4, 2), (7, 1)]);
    }
}
