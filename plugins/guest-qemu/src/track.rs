//! Which pages QEMU has written. The kernel decides how, by what it offers:
//!
//! | | asynchronous write protection ([`scan`]) | soft-dirty bits ([`soft`]) |
//! |---|---|---|
//! | kernel | 6.7 and later | before that, where it has CONFIG_MEM_SOFT_DIRTY |
//! | asked | guest paused or running | guest paused |
//! | costs | by dirty pages | by pages of guest RAM |
//! | guest RAM | may be reclaimed | must be locked into memory |
//!
//! Either names every page that was written through QEMU's mapping since it was last asked, and none that only others have
//! written.

mod scan;
mod soft;

use crate::inject::{InjectError, StoppedProcess};
use aventine_api::PageBitmap;
use rustix::process::Pid;
use scan::Protection;
use soft::SoftDirty;
use std::io;
use std::os::fd::BorrowedFd;

/// Why dirty pages cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackError {
    #[error("Could not make a userfaultfd in QEMU")]
    Inject(#[from] InjectError),
    #[error("Could not take over QEMU's userfaultfd")]
    TakeOver(#[source] io::Error),
    #[error(
        "This kernel has no way to tell dirty pages: neither asynchronous write protection (Linux 6.7) nor soft-dirty bits \
         (CONFIG_MEM_SOFT_DIRTY)"
    )]
    Kernel(#[source] io::Error),
    #[error(
        "Could not lock guest RAM into memory, without which soft-dirty bits get lost; QEMU needs CAP_IPC_LOCK or a \
         memlock limit (ulimit -l) above the size of guest RAM"
    )]
    Lock(#[source] InjectError),
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
    #[error(
        "QEMU maps guest RAM with huge pages, in which single writes do not show: let the VM begin with `never` in \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    )]
    HugePages,
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
pub(crate) enum Tracker {
    Protection(Protection),
    SoftDirty(SoftDirty),
}

/// Whose process is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our child, which ends with us.
    Us,
    /// Not our child: it must survive our end at any moment.
    Others,
}

impl Tracker {
    /// Tracks `pid`, which maps all of `memory` (of `bytes`). Stops it for a fraction of a millisecond.
    pub(crate) fn start(
        pid: Pid,
        owner: Owner,
        memory: BorrowedFd<'_>,
        bytes: u64,
    ) -> Result<Tracker, TrackError> {
        let protection = match owner {
            Owner::Us => Protection::of_child(pid, memory, bytes),
            Owner::Others => Protection::of_others(pid, memory, bytes),
        };
        match protection {
            Ok(protection) => Ok(Tracker::Protection(protection)),
            Err(error) if error.is_missing() && soft::is_supported() => {
                tracing::warn!(
                    reason = %error.cause(),
                    "this kernel lacks asynchronous write protection; dirty pages are told by soft-dirty bits"
                );
                Ok(Tracker::SoftDirty(SoftDirty::start(pid, owner, memory, bytes)?))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the guest must be paused for [`Tracker::scan`].
    pub(crate) fn needs_pause(&self) -> bool {
        matches!(self, Tracker::SoftDirty(_))
    }

    /// Sets the bit of every page written since the last call and tracks those pages anew. After an error the bits set so
    /// far are valid.
    pub(crate) fn scan(&mut self, dirty: &mut PageBitmap) -> Result<(), TrackError> {
        match self {
            Tracker::Protection(tracker) => tracker.scan(dirty),
            Tracker::SoftDirty(tracker) => tracker.scan(dirty),
        }
    }
}

impl TrackError {
    /// Whether the kernel lacks what write protection takes.
    fn is_missing(&self) -> bool {
        match self {
            TrackError::Kernel(_) => true,
            TrackError::Inject(InjectError::Call { source, .. }) => {
                source.raw_os_error() == Some(libc::ENOSYS)
            }
            _ => false,
        }
    }

    fn cause(&self) -> &dyn std::error::Error {
        std::error::Error::source(self).unwrap_or(self)
    }
}

fn forbid_huge_pages(process: &mut StoppedProcess, mappings: &[Mapping]) -> Result<(), InjectError> {
    mappings.iter().try_for_each(|m| {
        let arguments = [m.start, m.end - m.start, libc::MADV_NOHUGEPAGE as u64];
        process.call("madvise", libc::SYS_madvise, arguments).map(drop)
    })
}

/// Whether any page table of the mappings maps a huge page.
fn has_huge_pages(pid: Pid, mappings: &[Mapping]) -> Result<bool, TrackError> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).map_err(TrackError::Map)?;
    let mut inside = false;
    Ok(text.lines().any(|line| {
        if let Some((start, _)) = address_range(line) {
            inside = mappings.iter().any(|m| m.start == start);
        }
        let mut words = line.split_ascii_whitespace();
        let huge = matches!(words.next(), Some("ShmemPmdMapped:" | "FilePmdMapped:"));
        inside && huge && words.next() != Some("0")
    }))
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
    use aventine_api::PAGE_SIZE;
    use rustix::mm::{Advice, MapFlags, ProtFlags};
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::{AsFd, AsRawFd};
    use std::process::{Command, Stdio};

    const PAGES: usize = 1024;
    /// The file that the other process maps.
    const MEMORY: &str = "AVENTINE_TEST_MEMORY";

    #[test]
    fn writes_of_another_process_show_and_nothing_else() {
        track_another_process();
    }

    /// The other tracker, on Debian 12's kernel.
    #[test]
    fn soft_dirty_bits_tell_the_same_on_linux_6_1() {
        aventine_lab::inside(|| assert!(track_another_process().needs_pause()));
    }

    /// Whatever tracks here: each page that another process writes, and no other, though it reads pages and others fill
    /// them.
    fn track_another_process() -> Tracker {
        let memory = GuestMemory::new((PAGES * PAGE_SIZE) as u64, true).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "track::tests::touches_the_pages_it_is_told", "--ignored", "--nocapture"])
            .env(MEMORY, format!("/proc/{}/fd/{}", std::process::id(), memory.as_fd().as_raw_fd()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = |word: &str| assert!(lines.any(|line| line.unwrap().ends_with(word)), "{word}");
        heard("ready");
        let mut tracker =
            Tracker::start(Pid::from_child(&child), Owner::Us, memory.as_fd(), memory.bytes()).unwrap();
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % PAGES
        };
        let mut dirty = PageBitmap::new(PAGES as u64);
        for round in 0..300 {
            for _ in 0..random() % 20 {
                let page = [round as u8; PAGE_SIZE];
                rustix::io::pwrite(memory.as_fd(), &page, (random() * PAGE_SIZE) as u64).unwrap();
            }
            let reads = (0..random() % 40).map(|_| random()).collect::<Vec<_>>();
            let writes = (0..random() % 80).map(|_| random()).collect::<BTreeSet<_>>();
            let orders = reads.iter().map(|page| format!("r{page} "));
            let orders = orders.chain(writes.iter().map(|page| format!("w{page} "))).collect::<String>();
            writeln!(child.stdin.as_mut().unwrap(), "{orders}").unwrap();
            heard("done");
            dirty.clear();
            tracker.scan(&mut dirty).unwrap();
            let found = (0..PAGES).filter(|&page| dirty.contains(page as u64)).collect::<BTreeSet<_>>();
            assert_eq!(found, writes, "round {round}");
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(matches!(tracker.scan(&mut dirty), Err(TrackError::Gone)));
        tracker
    }

    #[test]
    #[ignore = "the other process of another test"]
    fn touches_the_pages_it_is_told() {
        let path = std::env::var_os(MEMORY).expect("this is started by another test");
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let (length, prot) = (PAGES * PAGE_SIZE, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, &file, 0) };
        let host = host.unwrap().cast::<u8>();
        // SAFETY: the advice changes how the mapping is backed, not what it holds.
        unsafe { rustix::mm::madvise(host.cast(), length, Advice::LinuxNoHugepage).unwrap() };
        println!("ready");
        for line in io::stdin().lines() {
            for order in line.unwrap().split_ascii_whitespace() {
                let (what, page) = order.split_at(1);
                let at = page.parse::<usize>().unwrap() * PAGE_SIZE;
                // SAFETY: inside the mapping.
                let byte = unsafe { host.add(at).read_volatile() };
                if what == "w" {
                    // SAFETY: as above.
                    unsafe { host.add(at).write_volatile(byte.wrapping_add(1)) };
                }
            }
            println!("done");
        }
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
}
