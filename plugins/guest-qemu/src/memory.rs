//! Guest RAM: a file in memory that QEMU and this process both map.
//!
//! A file made here never changes its size (sealed), so that no access through the mapping can fault.

use aventine_api::{PAGE_SIZE, PageBitmap, Region};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// Guest RAM, mapped here for as long as this lives.
pub(crate) struct GuestMemory {
    file: OwnedFd,
    host: NonNull<u8>,
    bytes: u64,
}

// SAFETY: the mapping belongs to this value alone and is valid from every thread.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    /// All-zero memory of `bytes`, a multiple of the page size. Read-only here unless `writable`: on the primary a
    /// stray write of this process would be a page that no dirty bit shows.
    pub(crate) fn new(bytes: u64, writable: bool) -> io::Result<GuestMemory> {
        let length = usize::try_from(bytes).map_err(|_| Errno::NOMEM)?;
        let file = rustix::fs::memfd_create("aventine-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        GuestMemory::map(file, bytes, length, prot)
    }

    /// The first `bytes` of a file that a QEMU of somebody else's maps; read-only. Who shrinks the file ends this
    /// process and that QEMU alike.
    pub(crate) fn of_file(file: OwnedFd, bytes: u64) -> io::Result<GuestMemory> {
        let length = usize::try_from(bytes).map_err(|_| Errno::NOMEM)?;
        if rustix::fs::fstat(&file)?.st_size.cast_unsigned() < bytes {
            return Err(Errno::NXIO.into());
        }
        GuestMemory::map(file, bytes, length, ProtFlags::READ)
    }

    fn map(file: OwnedFd, bytes: u64, length: usize, prot: ProtFlags) -> io::Result<GuestMemory> {
        // SAFETY: a new shared mapping at an address of the kernel's choice; nothing existing is touched.
        let host =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, &file, 0)? };
        let host = NonNull::new(host.cast()).ok_or(Errno::NOMEM)?;
        let memory = GuestMemory { file, host, bytes };
        // Collapsing pages of this mapping into a huge one would take them out of QEMU's page table too: see `track`.
        // SAFETY: the advice changes how the mapping is backed, not what it holds.
        unsafe { rustix::mm::madvise(host.as_ptr().cast(), length, Advice::LinuxNoHugepage)? };
        Ok(memory)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn pages(&self) -> u64 {
        self.bytes / PAGE_SIZE as u64
    }

    pub(crate) fn region(&self) -> Region {
        Region { first_page: 0, pages: self.pages(), host: self.host }
    }

    /// Makes everything zero again and gives the space back.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, punch, 0, self.bytes)?)
    }

    /// Sets the bit of every page that has ever been touched; all others are zero.
    pub(crate) fn populated(&self, pages: &mut PageBitmap) -> io::Result<()> {
        let page = PAGE_SIZE as u64;
        let mut at = 0;
        while at < self.bytes {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(data))?;
            let first = data / page;
            pages.set_range(first, at.div_ceil(page) - first);
        }
        Ok(())
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and regions are only promised to be valid until
        // the guest is dropped.
        let unmapped = unsafe { rustix::mm::munmap(self.host.as_ptr().cast(), self.bytes as usize) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_touched_pages_are_populated_and_clearing_gives_them_back() {
        let memory = GuestMemory::new(64 * PAGE_SIZE as u64, true).unwrap();
        for page in [3usize, 4, 63] {
            // SAFETY: inside the mapping, which is writable and not shared with anybody here.
            unsafe { memory.host.as_ptr().add(page * PAGE_SIZE + 7).write(1) };
        }
        let mut pages = PageBitmap::new(64);
        memory.populated(&mut pages).unwrap();
        assert_eq!(pages.runs().collect::<Vec<_>>(), [(3, 2), (63, 1)]);
        memory.clear().unwrap();
        pages.clear();
        memory.populated(&mut pages).unwrap();
        assert_eq!(pages.count(), 0);
    }
}
