//! A file, or a part of a block device, that is read and changed in every way that Linux has, and whose contents are known to
//! the memory of the program that does it.
//!
//! ```text
//!  random operation ─► kernel ─► file or device       what is read = model, always
//!                 └──► model (memory)                 (a discarded sector: what it was, or zeroes, from then on)
//! ```
//! - Reads and writes have any place and length, go through the page cache, past it, or through a mapping of the file.
//! - A file becomes shorter and longer; ranges are allocated, made holes, zeroed; those of a device are discarded, too.
//! - Eviction makes the next reads ask the disk: what is only in the page cache is memory, and proves nothing.
//!
//! The model lives in the guest's memory. If that is from epoch *n* and the disk is from another one, they differ.

use crate::random::Random;
use crate::raw::{Mapping, discard};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What transfers past the page cache are aligned to; and what a device is discarded in, as pages of the cache are.
const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// Most bytes of one operation.
const MOST: usize = 64 << 10;
/// What is made zero keeps the file's size.
const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Why an exercise ended.
#[derive(Debug, thiserror::Error)]
pub enum ExerciseError {
    /// The kernel refused.
    #[error("{operation:?} number {number} failed")]
    Refused {
        /// What was to be done.
        operation: Operation,
        /// How many were before it.
        number: u64,
        /// Why not.
        source: io::Error,
    },
    /// The disk is not what the memory says.
    #[error("{operation:?} number {number} found {found:#04x} at {offset} and not {known:#04x}")]
    Differs {
        /// What found it.
        operation: Operation,
        /// How many were before it.
        number: u64,
        /// The byte's place.
        offset: usize,
        /// What is there.
        found: u8,
        /// What the memory says.
        known: u8,
    },
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Through the page cache.
    Write,
    /// Through the page cache.
    Read,
    /// Past the page cache.
    DirectWrite,
    /// Past the page cache.
    DirectRead,
    /// Through a mapping (files).
    MappedWrite,
    /// Through a mapping (files).
    MappedRead,
    /// To stable storage.
    Sync,
    /// The page cache forgets.
    Evict,
    /// A range becomes a hole.
    Punch,
    /// A range becomes zeroes.
    Zero,
    /// The file becomes shorter or longer (files).
    Resize,
    /// A range gets its space, and the file its length (files).
    Allocate,
    /// A range's contents are of no use any more (devices).
    Discard,
    /// All of it is read.
    Compare,
}

/// What both do; one that does not exist for one of them is left out by [`Exercise::choose`].
const OPERATIONS: [Operation; 14] = [
    Operation::Write,
    Operation::Write,
    Operation::Read,
    Operation::DirectWrite,
    Operation::DirectRead,
    Operation::MappedWrite,
    Operation::MappedRead,
    Operation::Sync,
    Operation::Evict,
    Operation::Punch,
    Operation::Zero,
    Operation::Resize,
    Operation::Allocate,
    Operation::Discard,
];

/// A file or a part of a device, and what is known of it.
#[derive(Debug)]
pub struct Exercise {
    cached: File,
    direct: File,
    device: bool,
    /// Where it begins, and how long it may become.
    from: u64,
    most: usize,
    /// Its contents; a file's model is as long as the file.
    model: Vec<u8>,
    /// Bytes of one operation, aligned as transfers past the page cache must be.
    buffer: Vec<u8>,
    random: Random,
    done: u64,
}

/// How one operation failed.
enum Failure {
    Refused(io::Error),
    Differs { offset: usize, found: u8, known: u8 },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Refused(error)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Failure {
        Failure::Refused(error.into())
    }
}

impl Exercise {
    /// Takes the `most` bytes of a device at `from`, as they are; or a file, which is made anew and then grows and shrinks
    /// (`from` counts for nothing). `from` and `most` are whole pages.
    pub fn open(path: &Path, from: u64, most: usize) -> io::Result<Exercise> {
        let device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(!device).truncate(!device);
        let cached = options.open(path)?;
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let direct = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)?;
        let (from, mut model) = if device { (from, vec![0; most]) } else { (0, Vec::new()) };
        cached.read_exact_at(&mut model, from)?;
        let buffer = vec![0; MOST + PAGE];
        Ok(Exercise { cached, direct, device, from, most, model, buffer, random: Random::default(), done: 0 })
    }

    /// Operations so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Does something.
    pub fn step(&mut self) -> Result<(), ExerciseError> {
        let operation = self.choose();
        self.run(operation)
    }

    /// Has the page cache forget everything, reads all of it and compares.
    pub fn compare(&mut self) -> Result<(), ExerciseError> {
        self.run(Operation::Evict)?;
        self.run(Operation::Compare)
    }

    fn choose(&mut self) -> Operation {
        loop {
            let operation = OPERATIONS[self.random.below(OPERATIONS.len())];
            let fits = match operation {
                Operation::MappedWrite | Operation::MappedRead => !self.device && !self.model.is_empty(),
                Operation::Resize | Operation::Allocate => !self.device,
                Operation::Discard => self.device,
                _ => true,
            };
            if fits {
                return operation;
            }
        }
    }

    fn run(&mut self, operation: Operation) -> Result<(), ExerciseError> {
        let number = self.done;
        self.done += 1;
        self.perform(operation).map_err(|failure| match failure {
            Failure::Refused(source) => ExerciseError::Refused { operation, number, source },
            Failure::Differs { offset, found, known } => {
                ExerciseError::Differs { operation, number, offset, found, known }
            }
        })
    }

    fn perform(&mut self, operation: Operation) -> Result<(), Failure> {
        match operation {
            Operation::Write => self.write(1, false),
            Operation::DirectWrite => self.write(SECTOR, true),
            Operation::Read => {
                let (offset, len) = self.range_within(1);
                self.read(offset, len, false)
            }
            Operation::DirectRead => {
                let (offset, len) = self.range_within(SECTOR);
                self.read(offset, len, true)
            }
            Operation::MappedWrite => self.mapped_write(),
            Operation::MappedRead => self.mapped_read(),
            Operation::Sync if self.random.below(2) == 0 => Ok(self.cached.sync_data()?),
            Operation::Sync => Ok(self.cached.sync_all()?),
            Operation::Evict => self.evict(),
            Operation::Punch => self.make_zero(HOLE),
            Operation::Zero => self.make_zero(ZERO),
            Operation::Resize => self.resize(),
            Operation::Allocate => self.allocate(),
            Operation::Discard => self.discard(),
            Operation::Compare => self.compare_all(),
        }
    }

    /// Somewhere up to `end`, at least one unit of `unit` bytes and [`MOST`] bytes at most.
    fn range_to(&mut self, end: usize, unit: usize) -> (usize, usize) {
        let offset = self.random.below(end / unit) * unit;
        let most = (end - offset).min(MOST) / unit;
        // Short ones are as likely as long ones.
        let most = if self.random.below(2) == 0 { most.min(8192_usize.div_ceil(unit)) } else { most };
        (offset, (1 + self.random.below(most)) * unit)
    }

    /// Where something may be written.
    fn range(&mut self, unit: usize) -> (usize, usize) {
        self.range_to(self.most, unit)
    }

    /// Where something can be read.
    fn range_within(&mut self, unit: usize) -> (usize, usize) {
        match self.model.len() / unit {
            0 => (0, 0),
            units => self.range_to(units * unit, unit),
        }
    }

    /// The buffer's first bytes that are aligned.
    fn aligned(buffer: &mut [u8], len: usize) -> &mut [u8] {
        let start = buffer.as_ptr().align_offset(PAGE);
        &mut buffer[start..start + len]
    }

    /// Fills bytes so that no two operations fill alike.
    fn fill(random: &mut Random, bytes: &mut [u8]) {
        let mut word = random.number() | 1;
        for place in bytes.chunks_mut(8) {
            place.copy_from_slice(&word.to_le_bytes()[..place.len()]);
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        }
    }

    fn write(&mut self, unit: usize, direct: bool) -> Result<(), Failure> {
        let (offset, len) = self.range(unit);
        let bytes = Self::aligned(&mut self.buffer, len);
        Self::fill(&mut self.random, bytes);
        let file = if direct { &self.direct } else { &self.cached };
        file.write_all_at(bytes, self.from + offset as u64)?;
        let end = self.model.len().max(offset + len);
        self.model.resize(end, 0);
        self.model[offset..offset + len].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, offset: usize, len: usize, direct: bool) -> Result<(), Failure> {
        let bytes = Self::aligned(&mut self.buffer, len);
        let file = if direct { &self.direct } else { &self.cached };
        file.read_exact_at(bytes, self.from + offset as u64)?;
        compare(bytes, &self.model, offset)
    }

    fn mapped_write(&mut self) -> Result<(), Failure> {
        let (offset, len) = self.range_within(1);
        let mapping = Mapping::new(&self.cached, self.model.len())?;
        Self::fill(&mut self.random, &mut self.model[offset..offset + len]);
        mapping.write(offset, &self.model[offset..offset + len]);
        if self.random.below(4) == 0 {
            mapping.sync()?;
        }
        Ok(())
    }

    fn mapped_read(&mut self) -> Result<(), Failure> {
        let (offset, len) = self.range_within(1);
        let bytes = &mut self.buffer[..len];
        Mapping::new(&self.cached, self.model.len())?.read(offset, bytes);
        compare(bytes, &self.model, offset)
    }

    fn evict(&mut self) -> Result<(), Failure> {
        self.cached.sync_data()?;
        Ok(fadvise(&self.cached, self.from, NonZeroU64::new(self.most as u64), Advice::DontNeed)?)
    }

    fn make_zero(&mut self, how: FallocateFlags) -> Result<(), Failure> {
        let (offset, len) = self.range(if self.device { SECTOR } else { 1 });
        fallocate(&self.cached, how, self.from + offset as u64, len as u64)?;
        let end = self.model.len();
        self.model[offset.min(end)..(offset + len).min(end)].fill(0);
        Ok(())
    }

    fn resize(&mut self) -> Result<(), Failure> {
        let len = self.random.below(self.most + 1);
        self.cached.set_len(len as u64)?;
        self.model.resize(len, 0);
        Ok(())
    }

    fn allocate(&mut self) -> Result<(), Failure> {
        let (offset, len) = self.range(1);
        fallocate(&self.cached, FallocateFlags::empty(), offset as u64, len as u64)?;
        let end = self.model.len().max(offset + len);
        self.model.resize(end, 0);
        Ok(())
    }

    /// Each sector is as it was or zero afterwards, and stays so: also on the other host.
    fn discard(&mut self) -> Result<(), Failure> {
        let (offset, len) = self.range(PAGE);
        discard(&self.cached, self.from + offset as u64, len as u64)?;
        let bytes = Self::aligned(&mut self.buffer, len);
        self.direct.read_exact_at(bytes, self.from + offset as u64)?;
        for (at, found) in bytes.chunks_exact(SECTOR).enumerate() {
            let start = offset + at * SECTOR;
            if found.iter().any(|byte| *byte != 0) {
                compare(found, &self.model, start)?;
            }
            self.model[start..start + SECTOR].copy_from_slice(found);
        }
        Ok(())
    }

    fn compare_all(&mut self) -> Result<(), Failure> {
        let len = self.model.len();
        for offset in (0..len).step_by(MOST) {
            self.read(offset, MOST.min(len - offset), false)?;
        }
        if !self.device && self.cached.metadata()?.len() != len as u64 {
            return Err(io::Error::other("the file has another length").into());
        }
        Ok(())
    }
}

/// What was read at `offset` against what is known.
fn compare(read: &[u8], model: &[u8], offset: usize) -> Result<(), Failure> {
    let known = &model[offset..offset + read.len()];
    match read.iter().zip(known).position(|(found, known)| found != known) {
        Some(at) => Err(Failure::Differs { offset: offset + at, found: read[at], known: known[at] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside the test program: a memory file system may know nothing of direct access.
    fn exercise() -> (Exercise, File, tempfile::TempDir) {
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = dir.path().join("file");
        let exercise = Exercise::open(&path, 0, 1 << 20).unwrap();
        (exercise, OpenOptions::new().write(true).open(&path).unwrap(), dir)
    }

    #[test]
    fn a_file_that_agrees_passes() {
        let (mut exercise, _file, _dir) = exercise();
        for _ in 0..2000 {
            exercise.step().unwrap();
        }
        exercise.compare().unwrap();
        assert_eq!(exercise.done(), 2002);
    }

    #[test]
    fn one_wrong_byte_is_found_by_every_way_of_reading() {
        let (mut exercise, file, _dir) = exercise();
        exercise.perform(Operation::Resize).map_err(drop).unwrap();
        exercise.model.resize(SECTOR, 0);
        exercise.cached.set_len(SECTOR as u64).unwrap();
        file.write_all_at(&[7], 100).unwrap();
        for operation in [Operation::Read, Operation::DirectRead, Operation::MappedRead] {
            let found = (0..1000).find_map(|_| exercise.run(operation).err()).unwrap();
            let ExerciseError::Differs { offset: 100, found: 7, known: 0, .. } = found else {
                panic!("{found}")
            };
        }
        exercise.compare().unwrap_err();
    }

    #[test]
    fn another_length_is_found() {
        let (mut exercise, file, _dir) = exercise();
        exercise.compare().unwrap();
        file.set_len(1).unwrap();
        exercise.compare().unwrap_err();
    }
}
