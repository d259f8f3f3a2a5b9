//! The file: frames one after the other, each after its length in 4 bytes, round and round.

use rustix::fs::FallocateFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The longest frame that QEMU sends: a segment of 64 KiB with its headers.
pub(crate) const LONGEST: usize = 4096 + 65536;

pub(crate) struct Ring {
    file: File,
    size: u64,
    limit: u64,
    /// Bytes that ever came in and went out.
    pub(crate) end: u64,
    pub(crate) start: u64,
    pub(crate) frames: u64,
}

impl Ring {
    /// A ring for `limit` bytes, and what may come beyond in one reading.
    pub(crate) fn create(path: &Path, limit: u64) -> io::Result<Ring> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let size = limit + 4 * LONGEST as u64;
        // A disk that is full says so now, and not when frames must be held.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)?;
        Ok(Ring { file, size, limit, end: 0, start: 0, frames: 0 })
    }

    pub(crate) fn held(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn has_room(&self) -> bool {
        self.held() < self.limit
    }

    pub(crate) fn is_half_full(&self) -> bool {
        self.held() >= self.limit / 2
    }

    pub(crate) fn push(&mut self, frame: &[u8]) -> io::Result<()> {
        for bytes in [&(frame.len() as u32).to_be_bytes()[..], frame] {
            let at = self.end % self.size;
            let (upper, lower) = bytes.split_at(bytes.len().min((self.size - at) as usize));
            self.file.write_all_at(upper, at)?;
            self.file.write_all_at(lower, 0)?;
            self.end += bytes.len() as u64;
        }
        self.frames += 1;
        Ok(())
    }

    /// The oldest frame, which goes.
    pub(crate) fn pop(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.take(&mut length)?;
        let mut frame = vec![0; (u32::from_be_bytes(length) as usize).min(LONGEST)];
        self.take(&mut frame)?;
        self.frames -= 1;
        Ok(frame)
    }

    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let at = self.start % self.size;
        let (upper, lower) = bytes.split_at_mut(bytes.len().min((self.size - at) as usize));
        self.file.read_exact_at(upper, at)?;
        self.file.read_exact_at(lower, 0)?;
        self.start += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        (self.start, self.frames) = (self.end, 0);
    }
}
