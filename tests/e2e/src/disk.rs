//! A disk whose contents are known to the memory of the program that wrote them.
//!
//! The disk's first [`BLOCKS`] blocks of 4 KiB are written over and over, in runs of 1 to 16, past the page cache. Each
//! block carries the number of the write and a pattern made from it. The program keeps in its own memory which write
//! each block is from. A guest whose memory is from epoch *n* and whose disk is from another one shows it: some block
//! is older or newer than the memory says. A write under way when the guest is paused is in both or in neither.
//!
//! Where a write goes depends on the time, too: a guest that lives through the same moment again must not cover what it
//! wrote the first time. For the same reason it writes only when it is asked to.

use crate::random::Random;
use rustix::io::{preadv, pwritev};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Blocks in use.
pub const BLOCKS: usize = 4096;
/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Most blocks of one write.
const RUN: usize = 16;
/// Blocks of one read.
const READ: usize = 64;
/// Writes of one burst, and those between two flushes.
const BURST: u64 = 40;
const FLUSH: u64 = 16;

/// A block, aligned as reads and writes past the page cache must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// The disk and what is known of it.
#[derive(Debug)]
pub struct Workload {
    disk: File,
    /// Which write each block is from; 0: none.
    written: Vec<u64>,
    /// Number of the last write.
    last: u64,
    random: Random,
    buffer: Vec<Block>,
}

/// How the disk differs from the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub block: usize,
    /// The write that the block is from, as the memory knows it.
    pub memory: u64,
    /// The write that the block is from; `None` if it is no whole block of any.
    pub disk: Option<u64>,
}

impl Workload {
    /// Opens a disk that is all zeroes.
    pub fn open(path: &Path) -> io::Result<Workload> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let disk = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)?;
        let buffer = vec![Block([0; BLOCK]); READ];
        Ok(Workload { disk, written: vec![0; BLOCKS], last: 0, random: Random::default(), buffer })
    }

    /// Writes a burst; answers the number of its last write. All of it is on stable storage then.
    pub fn burst(&mut self) -> io::Result<u64> {
        for _ in 0..BURST {
            self.write()?;
            if self.last.is_multiple_of(FLUSH) {
                self.disk.sync_data()?;
            }
        }
        self.disk.sync_data()?;
        Ok(self.last)
    }

    /// Writes a run of blocks.
    fn write(&mut self) -> io::Result<()> {
        let number = self.last + 1;
        let random = self.random.number();
        let length = 1 + (random >> 32) as usize % RUN;
        let first = random as usize % (BLOCKS - length + 1);
        for (at, block) in self.buffer[..length].iter_mut().enumerate() {
            *block = Block::new(number, first + at);
        }
        let slices = self.buffer[..length].iter().map(|block| IoSlice::new(&block.0)).collect::<Vec<_>>();
        whole(pwritev(&self.disk, &slices, (first * BLOCK) as u64)?, length)?;
        self.last = number;
        self.written[first..first + length].fill(number);
        Ok(())
    }

    /// Number of the last write.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Reads every block and compares it with the memory. `None`: no difference.
    pub fn verify(&mut self) -> io::Result<Option<Difference>> {
        for first in (0..BLOCKS).step_by(READ) {
            let mut slices = self.buffer.iter_mut().map(|b| IoSliceMut::new(&mut b.0)).collect::<Vec<_>>();
            whole(preadv(&self.disk, &mut slices, (first * BLOCK) as u64)?, READ)?;
            for (at, found) in self.buffer.iter().enumerate() {
                let (block, memory) = (first + at, self.written[first + at]);
                let disk = found.number(block);
                if disk != Some(memory) {
                    return Ok(Some(Difference { block, memory, disk }));
                }
            }
        }
        Ok(None)
    }
}

/// A transfer of a disk is never cut short except by an error.
fn whole(bytes: usize, blocks: usize) -> io::Result<()> {
    match bytes == blocks * BLOCK {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Block {
    /// The contents of `block` after write `number`.
    fn new(number: u64, block: usize) -> Block {
        let mut bytes = [0; BLOCK];
        if number > 0 {
            let mut word = number;
            for place in bytes.chunks_exact_mut(8) {
                place.copy_from_slice(&word.to_le_bytes());
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(2 * block as u64 + 1);
            }
        }
        Block(bytes)
    }

    /// The write that this is from, if it is a whole block of one at this place.
    fn number(&self, block: usize) -> Option<u64> {
        let number = u64::from_le_bytes(self.0[..8].try_into().ok()?);
        (Block::new(number, block) == *self).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A workload on a file beside the test program: a memory file system may know nothing of direct access.
    fn workload() -> (Workload, File, tempfile::TempDir) {
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = dir.path().join("disk");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len((BLOCKS * BLOCK) as u64).unwrap();
        (Workload::open(&path).unwrap(), file, dir)
    }

    #[test]
    fn a_disk_that_agrees_passes() {
        let (mut workload, _file, _dir) = workload();
        assert_eq!(workload.verify().unwrap(), None);
        for _ in 0..10 {
            workload.burst().unwrap();
        }
        assert_eq!(workload.verify().unwrap(), None);
    }

    #[test]
    fn older_newer_and_torn_blocks_are_found() {
        let (mut workload, file, _dir) = workload();
        for _ in 0..10 {
            workload.burst().unwrap();
        }
        let block = workload.written.iter().position(|number| *number > 1).unwrap();
        let memory = workload.written[block];
        let mut torn = Block::new(memory, block);
        torn.0[BLOCK - 1] ^= 1;
        let cases = [
            (Block::new(memory - 1, block), Some(memory - 1)),
            (Block::new(501, block), Some(501)),
            (Block([0; BLOCK]), Some(0)),
            (Block::new(memory, block + 1), None),
            (torn, None),
        ];
        for (contents, disk) in cases {
            file.write_all_at(&contents.0, (block * BLOCK) as u64).unwrap();
            file.sync_data().unwrap();
            assert_eq!(workload.verify().unwrap(), Some(Difference { block, memory, disk }));
        }
    }
}
