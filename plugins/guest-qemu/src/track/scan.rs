//! Which pages QEMU has written: asynchronous write protection of its mapping of guest RAM.
//!
//! ```text
//!               UFFDIO_REGISTER (WP)          first write: the kernel drops the protection, nobody is woken
//! QEMU's page ───────────────────► protected ◄──────────────────────────────────────────► written
//!                                             PAGEMAP_SCAN: reports and protects again, in one step
//! ```
//!
//! What makes a lost bit impossible:
//! - A page counts as written unless its page table entry says that it is protected. So an entry that the kernel has
//!   dropped (reclaim under memory pressure) reads as written; a protected one leaves a marker behind when it is
//!   dropped. Guest RAM therefore need not be locked into memory.
//! - That holds entry by entry, not for whole page tables, so no huge page may ever be mapped: huge pages are turned
//!   off for QEMU and for our own mapping of the memory.
//! - Every write through QEMU's mapping counts, also the kernel's own (a `read` into guest memory). Writes through other
//!   mappings do not: devices in other processes are refused by `inspect`, and a standby's image is filled that way. Nor
//!   does a hole punched into the file.
//! - A page that QEMU has not touched is protected by a marker in the place of its entry, which stays when somebody else
//!   puts the page there: QEMU's first write to it counts, and nothing before.
//! - A mapping that has gone away shows no page at all. After each scan it must still be there.

use super::{Mapping, TrackError, covers, find_mappings, forbid_huge_pages, has_huge_pages};
use crate::inject::{self, ApartError, StoppedProcess};
use aventine_api::{PAGE_SIZE, PageBitmap};
use linux_raw_sys::general::{
    PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_FEATURE_WP_UNPOPULATED, UFFD_USER_MODE_ONLY, UFFDIO_REGISTER_MODE_WP, page_region, pm_scan_arg,
    uffdio_api, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// The version of the userfaultfd interface.
const UFFD_VERSION: u64 = 0xaa;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = rustix::ioctl::opcode::read_write::<pm_scan_arg>(b'f', 16);
/// Runs of written pages that one system call can report.
const BATCH: usize = 4096;

/// Tracks the pages of one file written through the mappings of one process.
pub(crate) struct Protection {
    /// Protection ends when the last descriptor is closed.
    _uffd: OwnedFd,
    pagemap: File,
    mappings: Vec<Mapping>,
    written: Vec<page_region>,
}

impl Protection {
    /// Protects the pages of `memory` (of `bytes`) in `pid`, our child.
    pub(super) fn of_child(pid: Pid, memory: BorrowedFd<'_>, bytes: u64) -> Result<Protection, TrackError> {
        let pidfd = pidfd(pid)?;
        let mut stopped = StoppedProcess::stop(pid, inject::find_instruction(pid)?)?;
        let made = make_userfaultfd(&mut stopped, &pidfd);
        stopped.resume()?;
        Protection::new(made?, pid, memory, bytes)
    }

    /// The same in a process that is not our child and must survive our end at any moment.
    pub(super) fn of_others(pid: Pid, memory: BorrowedFd<'_>, bytes: u64) -> Result<Protection, TrackError> {
        let pidfd = pidfd(pid)?;
        let instruction = inject::find_instruction(pid)?;
        let mappings = find_mappings(pid, memory)?;
        let number = inject::apart(|| {
            let mut stopped = StoppedProcess::stop(pid, instruction)?;
            let made = forbid_huge_pages(&mut stopped, &mappings)
                .map_err(Into::into)
                .and_then(|()| take_userfaultfd(&mut stopped, &pidfd));
            stopped.resume()?;
            made
        })?;
        // SAFETY: the process that ended meanwhile put it into our table and told nobody else its number.
        let uffd = unsafe { OwnedFd::from_raw_fd(number) };
        let tracker = Protection::new(uffd, pid, memory, bytes)?;
        match has_huge_pages(pid, &tracker.mappings)? {
            true => Err(TrackError::HugePages),
            false => Ok(tracker),
        }
    }

    /// Registers every mapping of `memory` in the process that made `uffd`, and protects all of it.
    fn new(uffd: OwnedFd, pid: Pid, memory: BorrowedFd<'_>, bytes: u64) -> Result<Protection, TrackError> {
        let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP
            | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
            | UFFD_FEATURE_WP_UNPOPULATED
            | UFFD_FEATURE_WP_ASYNC;
        let mut api = uffdio_api { api: UFFD_VERSION, features: features.into(), ioctls: 0 };
        // SAFETY: the request takes a uffdio_api.
        unsafe { ioctl(uffd.as_fd(), UFFDIO_API, &mut api) }.map_err(TrackError::Kernel)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(TrackError::Map)?;
        let mappings = find_mappings(pid, memory)?;
        if !covers(&mappings, bytes) {
            return Err(TrackError::Layout { pid });
        }
        for m in &mappings {
            let range = uffdio_range { start: m.start, len: m.end - m.start };
            let mut register = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_WP.into(), ioctls: 0 };
            // SAFETY: the request takes a uffdio_register; protecting pages changes nothing that they hold.
            unsafe { ioctl(uffd.as_fd(), UFFDIO_REGISTER, &mut register) }.map_err(TrackError::Register)?;
        }
        let none = page_region { start: 0, end: 0, categories: 0 };
        let mut tracker = Protection { _uffd: uffd, pagemap, mappings, written: vec![none; BATCH] };
        // Everything counts as written until it is protected for the first time: also what was never touched.
        tracker.scan(&mut PageBitmap::new(bytes / PAGE_SIZE as u64))?;
        Ok(tracker)
    }

    /// Sets the bit of every page written since the last call and protects those pages again. No allocation. After an
    /// error the bits set so far are valid.
    pub(super) fn scan(&mut self, dirty: &mut PageBitmap) -> Result<(), TrackError> {
        for m in &self.mappings {
            let mut at = m.start;
            while at < m.end {
                let flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
                let (found, walked) =
                    walk(&self.pagemap, at..m.end, flags, PAGE_IS_WRITTEN, &mut self.written)?;
                for run in &self.written[..found] {
                    let first = (run.start - m.start + m.offset) / PAGE_SIZE as u64;
                    dirty.set_range(first, (run.end - run.start) / PAGE_SIZE as u64);
                }
                at = walked;
            }
        }
        self.mappings.iter().try_for_each(|m| {
            let page = m.start..m.start + PAGE_SIZE as u64;
            match walk(&self.pagemap, page, 0, PAGE_IS_WPALLOWED, &mut self.written)? {
                (1, _) => Ok(()),
                _ => Err(TrackError::Gone),
            }
        })
    }
}

fn pidfd(pid: Pid) -> Result<OwnedFd, TrackError> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| TrackError::TakeOver(e.into()))
}

/// Has the process make a userfaultfd and takes it over.
fn make_userfaultfd(process: &mut StoppedProcess, pidfd: &OwnedFd) -> Result<OwnedFd, TrackError> {
    // Without a privilege only the user-mode kind may be made. It is enough: no fault is ever delivered.
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | u64::from(UFFD_USER_MODE_ONLY);
    let number = process.call("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0])?;
    let ours = rustix::process::pidfd_getfd(pidfd, number as i32, PidfdGetfdFlags::empty());
    process.call("close", libc::SYS_close, [number, 0, 0])?;
    ours.map_err(|e| TrackError::TakeOver(e.into()))
}

/// The same where nothing may be allocated.
fn take_userfaultfd(process: &mut StoppedProcess, pidfd: &OwnedFd) -> Result<RawFd, ApartError> {
    match make_userfaultfd(process, pidfd) {
        Ok(uffd) => Ok(uffd.into_raw_fd()),
        Err(TrackError::Inject(error)) => Err(error.into()),
        Err(TrackError::TakeOver(source)) => Err(Errno::from_io_error(&source).unwrap_or(Errno::IO).into()),
        Err(_) => Err(Errno::IO.into()),
    }
}

/// One PAGEMAP_SCAN for pages of `category`: how many runs were found, and up to where the range was walked.
fn walk(
    pagemap: &File,
    range: std::ops::Range<u64>,
    flags: u32,
    category: u32,
    found: &mut [page_region],
) -> Result<(usize, u64), TrackError> {
    let mut scan = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: flags.into(),
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: category.into(),
        category_anyof_mask: 0,
        return_mask: category.into(),
    };
    // SAFETY: the request takes a pm_scan_arg, whose `vec` is `found` with its length.
    match unsafe { ioctl(pagemap.as_fd(), PAGEMAP_SCAN, &mut scan) } {
        Ok(count) => Ok((count, scan.walk_end)),
        // No process any more, or something else where the mapping was.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EPERM)) => Err(TrackError::Gone),
        Err(e) => Err(TrackError::Scan(e)),
    }
}

/// # Safety
/// `request` takes a pointer to a `T`.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open, and by this function's contract the argument fits the request.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), std::ptr::from_mut(argument)) };
        match usize::try_from(answer) {
            Ok(value) => return Ok(value),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;
    use rustix::mm::{Advice, MapFlags, ProtFlags, UserfaultfdFlags};

    const PAGES: usize = 2048;

    /// A tracker of this very process, and the mapping it tracks.
    fn track_ourselves() -> (GuestMemory, *mut u8, Protection) {
        let memory = GuestMemory::new((PAGES * PAGE_SIZE) as u64, true).unwrap();
        let host = memory.region().host.as_ptr();
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let flags = flags | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: faults are resolved by the kernel, so no thread of the test can hang on one.
        let uffd = unsafe { rustix::mm::userfaultfd(flags).unwrap() };
        let tracker =
            Protection::new(uffd, rustix::process::getpid(), memory.as_fd(), memory.bytes()).unwrap();
        (memory, host, tracker)
    }

    fn runs(tracker: &mut Protection) -> Vec<(u64, u64)> {
        let mut dirty = PageBitmap::new(PAGES as u64);
        tracker.scan(&mut dirty).unwrap();
        dirty.runs().collect()
    }

    fn write(host: *mut u8, page: usize) {
        // SAFETY: callers pass pages of the mapping, which is writable.
        unsafe { host.add(page * PAGE_SIZE).write_volatile(1) };
    }

    fn drop_entry(host: *mut u8, page: usize) {
        // SAFETY: the file keeps what the page holds; only the page table entry goes.
        unsafe {
            rustix::mm::madvise(host.add(page * PAGE_SIZE).cast(), PAGE_SIZE, Advice::LinuxDontNeed).unwrap();
        };
    }

    #[test]
    fn each_write_shows_once_and_reads_do_not() {
        let (_memory, host, mut tracker) = track_ourselves();
        assert_eq!(runs(&mut tracker), []);
        write(host, 3);
        write(host, 600);
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { host.add(1000 * PAGE_SIZE).read_volatile() }, 0);
        assert_eq!(runs(&mut tracker), [(3, 1), (600, 1)]);
        assert_eq!(runs(&mut tracker), []);
        write(host, 600);
        assert_eq!(runs(&mut tracker), [(600, 1)]);
    }

    #[test]
    fn more_runs_than_one_call_reports() {
        let (_memory, host, mut tracker) = track_ourselves();
        tracker.written.truncate(5);
        let odd = (0..PAGES).skip(1).step_by(2);
        odd.clone().for_each(|page| write(host, page));
        assert_eq!(runs(&mut tracker), odd.map(|page| (page as u64, 1)).collect::<Vec<_>>());
        assert_eq!(runs(&mut tracker), []);
    }

    #[test]
    fn a_write_by_the_kernel_counts() {
        let (_memory, host, mut tracker) = track_ourselves();
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"bytes").unwrap();
        // SAFETY: inside the mapping, and nothing else refers to it.
        let page = unsafe { std::slice::from_raw_parts_mut(host.add(9 * PAGE_SIZE), 5) };
        rustix::io::read(&read, page).unwrap();
        assert_eq!(runs(&mut tracker), [(9, 1)]);
    }

    /// A standby's image is filled through the file or another mapping of it.
    #[test]
    fn pages_that_others_fill_count_only_once_they_are_written_here() {
        let (memory, host, mut tracker) = track_ourselves();
        let page = [7; PAGE_SIZE];
        for at in [20, 21, 700] {
            assert_eq!(rustix::io::pwrite(memory.as_fd(), &page, (at * PAGE_SIZE) as u64), Ok(PAGE_SIZE));
        }
        assert_eq!(runs(&mut tracker), []);
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { host.add(21 * PAGE_SIZE + 9).read_volatile() }, 7);
        assert_eq!(runs(&mut tracker), []);
        write(host, 20);
        write(host, 21);
        assert_eq!(runs(&mut tracker), [(20, 2)]);
    }

    /// What reclaim does to a page table: a page written before its entry went must still count.
    #[test]
    fn a_dropped_entry_loses_no_bit() {
        let (_memory, host, mut tracker) = track_ourselves();
        for page in [4, 5, 6] {
            write(host, page);
        }
        drop_entry(host, 5);
        assert_eq!(runs(&mut tracker), [(4, 3)]);
        drop_entry(host, 6);
        assert_eq!(runs(&mut tracker), []);
        write(host, 6);
        assert_eq!(runs(&mut tracker), [(6, 1)]);
    }

    #[test]
    fn a_mapping_that_was_replaced_is_an_error_and_not_a_clean_guest() {
        let (_memory, host, mut tracker) = track_ourselves();
        write(host, 1);
        let (prot, flags) = (ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED);
        // SAFETY: takes the place of the mapping that the test owns, and is unmapped with it.
        unsafe { rustix::mm::mmap_anonymous(host.cast(), PAGES * PAGE_SIZE, prot, flags).unwrap() };
        assert!(matches!(tracker.scan(&mut PageBitmap::new(PAGES as u64)), Err(TrackError::Gone)));
    }

    #[test]
    fn a_kernel_without_the_feature_is_named() {
        // SAFETY: the descriptor was just made and is owned by nothing else.
        let pipe = unsafe { OwnedFd::from_raw_fd(libc::dup(0)) };
        let memory = GuestMemory::new(PAGE_SIZE as u64, false).unwrap();
        let made = Protection::new(pipe, rustix::process::getpid(), memory.as_fd(), memory.bytes());
        assert!(made.err().unwrap().to_string().contains("Linux 6.7"));
    }
}
