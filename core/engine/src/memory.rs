//! Guest memory, as the guest plugin maps it into this process.

use aventine_api::{ErrorCode, Guest, PAGE_SIZE, PageSink, PluginError, Region};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A piece of guest memory that the plugin does not have.
#[derive(Debug, thiserror::Error)]
#[error("Guest pages {first} to {last} lie outside the guest's {pages} pages", last = first + count - 1)]
struct OutsideMemory {
    first: u64,
    count: u64,
    pages: u64,
}

/// All regions of a guest.
pub(crate) struct GuestMemory {
    regions: Vec<Region>,
    /// The file of each region, where it has one; open for as long as the regions are valid.
    files: Vec<Option<BorrowedFd<'static>>>,
    pages: u64,
}

// SAFETY: the regions are plain shared memory, valid from any thread for as long as the guest plugin lives.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    /// The memory of a started guest.
    ///
    /// # Safety
    /// The answer must not be used after `guest` was dropped.
    pub(crate) unsafe fn of(guest: &dyn Guest) -> GuestMemory {
        let regions = guest.regions();
        let files = (0..regions.len()).map(|r| guest.backing(r)).collect::<Vec<_>>();
        // SAFETY: a guest's regions and their files stay valid until it is dropped.
        unsafe { GuestMemory::from_regions(regions, &files) }
    }

    /// # Safety
    /// The regions must stay valid and the files, one for each region, open while the answer is in use.
    pub(crate) unsafe fn from_regions(regions: Vec<Region>, files: &[Option<BorrowedFd<'_>>]) -> GuestMemory {
        assert_eq!(regions.len(), files.len(), "each region has its answer");
        let pages = regions.iter().map(|r| r.pages).sum();
        // SAFETY: open for long enough, by this function's contract.
        let files = files.iter().map(|f| f.map(|f| unsafe { BorrowedFd::borrow_raw(f.as_raw_fd()) }));
        GuestMemory { regions, files: files.collect(), pages }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Copies pages from `first` on into `out`, a whole number of pages. A guest that runs may change them
    /// meanwhile: then its dirty bit is set and they are copied again.
    pub(crate) fn read(&self, first: u64, out: &mut [u8]) {
        self.each_region(first, out, |position, inside, out| self.copy(position, inside, out));
    }

    /// Like [`GuestMemory::read`], and allocates no page that was never written. Reads the file where there is one: that
    /// takes a system call.
    pub(crate) fn read_sparse(&self, first: u64, out: &mut [u8]) {
        self.each_region(first, out, |position, inside, out| {
            let mut done = 0;
            while let Some(file) = self.files[position]
                && done < out.len()
            {
                match pread(file, &mut out[done..], (inside * PAGE_SIZE + done) as u64) {
                    Ok(n @ 1..) => done += n,
                    Err(Errno::INTR) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            if done < out.len() {
                self.copy(position, inside, out);
            }
        });
    }

    /// The first page from `page` on that may hold something other than zeros; the end of the region, or of the hole at
    /// its end, if there is none.
    pub(crate) fn next_used(&self, page: u64) -> u64 {
        let Some(position) = self.region(page) else { return page };
        let (region, Some(file)) = (&self.regions[position], self.files[position]) else { return page };
        match seek(file, SeekFrom::Data((page - region.first_page) * PAGE_SIZE as u64)) {
            Ok(data) => region.first_page + data / PAGE_SIZE as u64,
            Err(Errno::NXIO) => region.first_page + region.pages,
            Err(_) => page,
        }
    }

    /// Position of the region that a page is in, and the page's byte in it.
    pub(crate) fn place(&self, page: u64) -> Option<(usize, u64)> {
        let position = self.region(page)?;
        Some((position, (page - self.regions[position].first_page) * PAGE_SIZE as u64))
    }

    fn region(&self, page: u64) -> Option<usize> {
        self.regions.iter().position(|r| (r.first_page..r.first_page + r.pages).contains(&page))
    }

    /// Calls `part` with each region's position, the first page in it, and the part of `out` that it has.
    fn each_region(&self, mut first: u64, mut out: &mut [u8], part: impl Fn(usize, usize, &mut [u8])) {
        while !out.is_empty() {
            let position = self.region(first).expect("the bitmap covers exactly the guest's pages");
            let region = &self.regions[position];
            let inside = (first - region.first_page) as usize;
            let bytes = out.len().min((region.pages as usize - inside) * PAGE_SIZE);
            let (now, later) = out.split_at_mut(bytes);
            part(position, inside, now);
            first += (bytes / PAGE_SIZE) as u64;
            out = later;
        }
    }

    /// Copies the contents of `old`, a guest of the same layout that no longer runs, into this memory, which is all zero:
    /// pages that are zero stay untouched.
    pub(crate) fn take(&mut self, old: &GuestMemory) -> Result<(), PluginError> {
        if old.pages != self.pages {
            let outside = OutsideMemory { first: 0, count: old.pages, pages: self.pages };
            return Err(PluginError::new(ErrorCode::Internal, outside));
        }
        let mut bytes = vec![0; PAGE_SIZE];
        let mut page = old.next_used(0);
        while page < self.pages {
            old.read_sparse(page, &mut bytes);
            if bytes.iter().any(|&b| b != 0) {
                self.pages(page, 1)?.copy_from_slice(&bytes);
            }
            page = old.next_used(page + 1).max(page + 1);
        }
        Ok(())
    }

    /// Copies the pages from `inside` on of a region that has them all.
    fn copy(&self, position: usize, inside: usize, out: &mut [u8]) {
        let region = &self.regions[position];
        assert!(inside + out.len().div_ceil(PAGE_SIZE) <= region.pages as usize, "inside the region");
        // SAFETY: the pages lie inside the region, which is readable while the guest plugin lives, and `out` is memory
        // of this process alone.
        unsafe {
            let from = region.host.as_ptr().add(inside * PAGE_SIZE);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len());
        }
    }
}

impl PageSink for GuestMemory {
    fn pages(&mut self, first: u64, count: u64) -> Result<&mut [u8], PluginError> {
        let inside = |r: &&Region| {
            first >= r.first_page && first.checked_add(count).is_some_and(|end| end <= r.first_page + r.pages)
        };
        let region = self.regions.iter().find(inside).ok_or_else(|| {
            PluginError::new(ErrorCode::Corrupt, OutsideMemory { first, count, pages: self.pages })
        })?;
        let offset = (first - region.first_page) as usize * PAGE_SIZE;
        // SAFETY: the range lies inside the region, which is writable on the standby while the guest plugin lives;
        // the guest there does not run, and `&mut self` makes this the only slice.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(region.host.as_ptr().add(offset), count as usize * PAGE_SIZE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::os::fd::{AsFd, OwnedFd};
    use std::ptr::NonNull;

    const PAGES: u64 = 64;

    /// Two regions, each a file that is mapped; page 64 is the first of the second.
    struct Files(Vec<(OwnedFd, NonNull<u8>)>);

    impl Files {
        fn new() -> Files {
            let one = |_| {
                let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
                let bytes = PAGES * PAGE_SIZE as u64;
                ftruncate(&file, bytes).unwrap();
                let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
                // SAFETY: a new mapping, at an address of the kernel's choice.
                let host = unsafe { mmap(std::ptr::null_mut(), bytes as usize, prot, flags, &file, 0) };
                (file, NonNull::new(host.unwrap().cast()).unwrap())
            };
            Files((0..2).map(one).collect())
        }

        fn memory(&self) -> GuestMemory {
            let region = |(i, (_, host)): (usize, &(OwnedFd, NonNull<u8>))| Region {
                first_page: i as u64 * PAGES,
                pages: PAGES,
                host: *host,
            };
            let files = self.0.iter().map(|(f, _)| Some(f.as_fd())).collect::<Vec<_>>();
            // SAFETY: every test keeps the files for as long as the memory.
            unsafe { GuestMemory::from_regions(self.0.iter().enumerate().map(region).collect(), &files) }
        }

        fn write(&self, page: u64, byte: u8) {
            let (region, inside) = ((page / PAGES) as usize, (page % PAGES) as usize);
            // SAFETY: inside the mapping, which nothing else uses now.
            unsafe { self.0[region].1.as_ptr().add(inside * PAGE_SIZE + 5).write(byte) };
        }

        fn allocated(&self) -> i64 {
            self.0.iter().map(|(f, _)| fstat(f).unwrap().st_blocks * 512 / PAGE_SIZE as i64).sum()
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            for (_, host) in &self.0 {
                // SAFETY: mapped in `new` with this length.
                unsafe { munmap(host.as_ptr().cast(), PAGES as usize * PAGE_SIZE).unwrap() };
            }
        }
    }

    #[test]
    fn holes_are_known_and_stay_holes() {
        let files = Files::new();
        let memory = files.memory();
        let written = [0, 5, 63, 64, 126];
        written.iter().for_each(|&page| files.write(page, page as u8 + 1));
        assert_eq!(files.allocated(), 5);

        let next = [0, 1, 6, 64, 65, 127].map(|page| memory.next_used(page));
        assert_eq!(next, [0, 5, 63, 64, 126, 128]);

        let mut sparse = vec![1; 128 * PAGE_SIZE];
        memory.read_sparse(0, &mut sparse);
        assert_eq!(files.allocated(), 5);
        let mut mapped = vec![2; 128 * PAGE_SIZE];
        memory.read(0, &mut mapped);
        assert!(sparse == mapped);
        assert_eq!(sparse[63 * PAGE_SIZE + 5], 64);
        assert_eq!(files.allocated(), 128, "reading through the mapping fills holes");
    }

    #[test]
    fn memory_is_taken_over_without_its_zeroes() {
        let (old, new) = (Files::new(), Files::new());
        [0, 5, 64, 127].iter().for_each(|&page| old.write(page, page as u8 + 1));
        old.write(7, 0);
        let mut memory = new.memory();
        memory.take(&old.memory()).unwrap();
        assert_eq!(new.allocated(), 4);
        let mut bytes = [vec![1; 128 * PAGE_SIZE], vec![2; 128 * PAGE_SIZE]];
        old.memory().read(0, &mut bytes[0]);
        memory.read(0, &mut bytes[1]);
        assert!(bytes[0] == bytes[1]);
    }

    #[test]
    fn a_place_is_found_in_its_region() {
        let files = Files::new();
        let memory = files.memory();
        assert_eq!(memory.place(63), Some((0, 63 * 4096)));
        assert_eq!(memory.place(64), Some((1, 0)));
        assert_eq!(memory.place(128), None);
    }

    #[test]
    fn without_a_file_every_page_may_be_used() {
        let mut bytes = vec![0u8; 3 * PAGE_SIZE];
        let region = Region { first_page: 0, pages: 3, host: NonNull::from(&mut bytes[0]) };
        // SAFETY: the vector outlives the memory.
        let memory = unsafe { GuestMemory::from_regions(vec![region], &[None]) };
        assert_eq!((memory.next_used(0), memory.next_used(1)), (0, 1));
    }
}
