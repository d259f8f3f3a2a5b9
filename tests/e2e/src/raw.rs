//! What the kernel can do with a file and the standard library has no name for.

use rustix::ioctl::{self, Opcode, Setter};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

/// `_IO(0x12, 119)`: takes a place and a length in bytes.
const BLKDISCARD: Opcode = 0x1277;

/// What a block device has there is of no use any more.
pub(crate) fn discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the kernel reads two words; anything but a block device refuses.
    unsafe { ioctl::ioctl(device, Setter::<BLKDISCARD, _>::new([offset, len])) }?;
    Ok(())
}

/// The first bytes of a file, mapped. The file must not become shorter meanwhile.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes, at least one.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing else is.
        let start = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { start, len })
    }

    fn place(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "within the mapping");
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies what is there at `offset`.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.place(offset, to.len());
        // SAFETY: mapped, and no slice of this program.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    /// Stores something at `offset`.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let to = self.place(offset, from.len());
        // SAFETY: as for reading; the caller is alone with it, and nobody holds a reference to it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Brings what was stored to stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly what is mapped.
        unsafe { msync(self.start.as_ptr(), self.len, MsyncFlags::SYNC) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what is mapped, and nothing refers to it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
