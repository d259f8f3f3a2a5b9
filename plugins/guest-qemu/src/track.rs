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

use crate::inject::{InjectError, StoppedProcess};
use aventine_api::{PAGE_SIZE, PageBitmap};
use linux_raw_sys::general::{
    PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_FEATURE_WP_UNPOPULATED, UFFD_USER_MODE_ONLY, UFFDIO_REGISTER_MODE_WP, page_region, pm_scan_arg,
    uffdio_api, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The version of the userfaultfd interface.
const UFFD_VERSION: u64 = 0xaa;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = rustix::ioctl::opcode::read_write::<pm_scan_arg>(b'f', 16);
/// Runs of written pages that one system call can report.
const BATCH: usize = 4096;

/// Why dirty pages cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackError {
    #[error("Could not make a userfaultfd in QEMU")]
    Inject(#[from] InjectError),
    #[error("Could not take over QEMU's userfaultfd")]
    TakeOver(#[source] io::Error),
    #[error("This kernel lacks asynchronous write protection; dirty pages need Linux 6.7 or later")]
    Kernel(#[source] io::Error),
    #[error("Could not read QEMU's memory map")]
    Map(#[source] io::Error),
    #[error(
        "QEMU (process {pid}) does not map guest RAM exactly once; `command` must run QEMU itself or something that \
         replaces itself by it"
    )]
    Layout { pid: Pid },
    #[error("Could not protect QEMU's mapping of guest RAM")]
    Register(#[source] io::Error),
    #[error("Could not read the dirty pages")]
    Scan(#[source] io::Error),
    #[error("QEMU's mapping of guest RAM is gone")]
    Gone,
}

/// A piece of guest RAM in QEMU's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
}

/// Tracks the pages of one file written through the mappings of one process.
pub(crate) struct Tracker {
    /// Protection ends when the last descriptor is closed.
    _uffd: OwnedFd,
    pagemap: File,
    mappings: Vec<Mapping>,
    written: Vec<page_region>,
}

impl Tracker {
    /// Tracks our child `pid`, which maps all of `memory` (of `bytes`). Stops it for a fraction of a millisecond.
    pub(crate) fn of_child(pid: Pid, memory: BorrowedFd<'_>, bytes: u64) -> Result<Tracker, TrackError> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| TrackError::TakeOver(e.into()))?;
        let mut stopped = StoppedProcess::stop(pid)?;
        let made = make_userfaultfd(&mut stopped, &pidfd);
        stopped.resume()?;
        Tracker::new(made?, pid, memory, bytes)
    }

    /// Registers every mapping of `memory` in the process that made `uffd`, and protects all of it.
    fn new(uffd: OwnedFd, pid: Pid, memory: BorrowedFd<'_>, bytes: u64) -> Result<Tracker, TrackError> {
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
        let mut tracker = Tracker { _uffd: uffd, pagemap, mappings, written: vec![none; BATCH] };
        // Everything counts as written until it is protected for the first time: also what was never touched.
        tracker.scan(&mut PageBitmap::new(bytes / PAGE_SIZE as u64))?;
        Ok(tracker)
    }

    /// Sets the bit of every page written since the last call and protects those pages again. No allocation. After an
    /// error the bits set so far are valid.
    pub(crate) fn scan(&mut self, dirty: &mut PageBitmap) -> Result<(), TrackError> {
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

/// Has the process make a userfaultfd and takes it over.
fn make_userfaultfd(process: &mut StoppedProcess, pidfd: &OwnedFd) -> Result<OwnedFd, TrackError> {
    // Without a privilege only the user-mode kind may be made. It is enough: no fault is ever delivered.
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | u64::from(UFFD_USER_MODE_ONLY);
    let number = process.call("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0])?;
    let ours = rustix::process::pidfd_getfd(pidfd, number as i32, PidfdGetfdFlags::empty());
    process.call("close", libc::SYS_close, [number, 0, 0])?;
    ours.map_err(|e| TrackError::TakeOver(e.into()))
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

/// The addresses at the beginning of a line of `/proc/PID/maps`.
pub(crate) fn address_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Where a process maps a file, by offset.
fn find_mappings(pid: Pid, file: BorrowedFd<'_>) -> Result<Vec<Mapping>, TrackError> {
    let stat = rustix::fs::fstat(file).map_err(|e| TrackError::Map(e.into()))?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let (device, inode) = (format!("{major:02x}:{minor:02x}"), stat.st_ino.to_string());
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(TrackError::Map)?;
    let mut mappings = maps.lines().filter_map(|line| mapping_of(line, &device, &inode)).collect::<Vec<_>>();
    mappings.sort_by_key(|m| m.offset);
    Ok(mappings)
}

/// A line of `/proc/PID/maps` (`start-end perms offset device inode path`), if it maps the file.
fn mapping_of(line: &str, device: &str, inode: &str) -> Option<Mapping> {
    let (start, end) = address_range(line)?;
    let mut fields = line.split_ascii_whitespace().skip(2);
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let same = fields.next()? == device && fields.next()? == inode;
    same.then_some(Mapping { start, end, offset })
}

/// Whether the mappings, by offset, show each of `bytes` once.
fn covers(mappings: &[Mapping], bytes: u64) -> bool {
    let end = mappings.iter().try_fold(0, |at, m| (m.offset == at).then_some(at + (m.end - m.start)));
    end == Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;
    use rustix::mm::{Advice, MapFlags, ProtFlags, UserfaultfdFlags};
    use std::os::fd::FromRawFd;

    const PAGES: usize = 2048;

    /// A tracker of this very process, and the mapping it tracks.
    fn track_ourselves() -> (GuestMemory, *mut u8, Tracker) {
        let memory = GuestMemory::new((PAGES * PAGE_SIZE) as u64, true).unwrap();
        let host = memory.region().host.as_ptr();
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let flags = flags | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: faults are resolved by the kernel, so no thread of the test can hang on one.
        let uffd = unsafe { rustix::mm::userfaultfd(flags).unwrap() };
        let tracker = Tracker::new(uffd, rustix::process::getpid(), memory.as_fd(), memory.bytes()).unwrap();
        (memory, host, tracker)
    }

    fn runs(tracker: &mut Tracker) -> Vec<(u64, u64)> {
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
    fn memory_mapped_in_part_or_twice_is_refused() {
        let map = |start, end, offset| Mapping { start, end, offset };
        assert!(covers(&[map(0x1000, 0x3000, 0), map(0x9000, 0xa000, 0x2000)], 0x3000));
        assert!(!covers(&[map(0x1000, 0x3000, 0), map(0x9000, 0xb000, 0)], 0x2000));
        assert!(!covers(&[map(0x1000, 0x3000, 0), map(0x9000, 0xa000, 0x3000)], 0x4000));
        assert!(!covers(&[], 0x1000));
        let line = "7ff117fff000-7ff127fff000 rw-s 00002000 00:01 1042      /memfd:ram (deleted)";
        let found = mapping_of(line, "00:01", "1042");
        assert_eq!(found, Some(map(0x7ff117fff000, 0x7ff127fff000, 0x2000)));
        assert_eq!(mapping_of(line, "00:01", "104"), None);
    }

    #[test]
    fn a_kernel_without_the_feature_is_named() {
        // SAFETY: the descriptor was just made and is owned by nothing else.
        let pipe = unsafe { OwnedFd::from_raw_fd(libc::dup(0)) };
        let memory = GuestMemory::new(PAGE_SIZE as u64, false).unwrap();
        let made = Tracker::new(pipe, rustix::process::getpid(), memory.as_fd(), memory.bytes());
        assert!(made.err().unwrap().to_string().contains("Linux 6.7"));
    }
}
