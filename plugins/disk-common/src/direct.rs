//! The way past the page cache: whole blocks, from and to memory that suits the device.
//!
//! ```text
//!  whole blocks, aligned memory     ─► the device
//!  whole blocks, any other memory   ─► an aligned buffer ─► the device
//!  anything else                    ─► the page cache, while nothing else is under way
//! ```
//! Invariants:
//! - Both ways show the same bytes. The kernel brings what the page cache has of a range to the device before it is read or written
//!   past the cache, and forgets it there after such a write; but not where both happen at once. So whoever uses the page
//!   cache is alone.
//! - Two requests that do not overlap do not disturb each other, whatever blocks they share.

use crate::lock;
use rustix::fs::{AtFlags, OFlags, StatxFlags, fstatfs, statx};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What memory is aligned to here. Page-aligned memory suits every device.
const PAGE: usize = 4096;
/// Longest piece that goes through an aligned buffer, and how many of those are kept.
pub(crate) const PIECE: usize = 1 << 20;
const SPARE: usize = 4;
/// Where the kernel takes the flag and ignores it: memory.
const TMPFS: i64 = 0x0102_1994;

/// Why an image is read and written through the page cache though it need not be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectError {
    #[error("its file system is in memory")]
    Memory,
    #[error("its file system does not offer it")]
    NotOffered,
    #[error("the kernel refuses it")]
    Refused(#[from] io::Error),
}

/// A second descriptor of an image.
pub(crate) struct Direct {
    file: File,
    /// What offsets, lengths and addresses must be multiples of.
    block: u64,
    memory: usize,
    /// Held shared past the page cache, exclusively through it.
    cached: RwLock<()>,
    spare: Mutex<Vec<Aligned>>,
}

/// Zeroes, at first, at an aligned address.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    at: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + PAGE];
        let first = bytes.as_ptr().addr();
        Aligned { at: first.next_multiple_of(PAGE) - first, bytes }
    }

    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + len]
    }
}

impl Direct {
    /// Opens the image of `file` once more.
    pub(crate) fn of(file: &File) -> Result<Direct, DirectError> {
        if fstatfs(file).map_err(io::Error::from)?.f_type as i64 == TMPFS {
            return Err(DirectError::Memory);
        }
        let (block, memory) = match statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (u64::from(s.stx_dio_offset_align), s.stx_dio_mem_align as usize)
            }
            // An older kernel, or a file system that does not say: pages suit where anything does.
            _ => (PAGE as u64, PAGE),
        };
        if block == 0 || memory == 0 || memory > PAGE || block > PIECE as u64 {
            return Err(DirectError::NotOffered);
        }
        // The file itself, whatever has its name by now.
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(itself)?;
        let direct = Direct { file, block, memory, cached: RwLock::default(), spare: Mutex::new(Vec::new()) };
        // Some take the flag and fail the first read.
        direct.file.read_at(Aligned::new(PIECE).get(block as usize), 0)?;
        Ok(direct)
    }

    /// Whether these are whole blocks.
    pub(crate) fn is_whole(&self, offset: u64, len: usize) -> bool {
        offset.is_multiple_of(self.block) && (len as u64).is_multiple_of(self.block)
    }

    fn suits(&self, memory: &[u8]) -> bool {
        memory.as_ptr().addr().is_multiple_of(self.memory)
    }

    /// From here until the guard is dropped, the page cache may be used.
    pub(crate) fn through_cache(&self) -> RwLockWriteGuard<'_, ()> {
        self.cached.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// And nobody else uses it.
    pub(crate) fn past_cache(&self) -> RwLockReadGuard<'_, ()> {
        self.cached.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_buffer<T>(&self, f: impl FnOnce(&mut Aligned) -> T) -> T {
        let spare = lock(&self.spare).pop();
        let mut buffer = spare.unwrap_or_else(|| Aligned::new(PIECE));
        let done = f(&mut buffer);
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(buffer);
        }
        done
    }

    /// Reads whole blocks.
    pub(crate) fn read(&self, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let _shared = self.past_cache();
        if self.suits(buf) {
            return self.file.read_exact_at(buf, offset);
        }
        self.by_buffer(|buffer| {
            for piece in buf.chunks_mut(PIECE) {
                self.file.read_exact_at(buffer.get(piece.len()), offset)?;
                piece.copy_from_slice(buffer.get(piece.len()));
                offset += piece.len() as u64;
            }
            Ok(())
        })
    }

    /// Writes whole blocks; with `sync` they are on stable storage on return.
    pub(crate) fn write(&self, mut offset: u64, data: &[u8], sync: bool) -> io::Result<()> {
        let _shared = self.past_cache();
        if self.suits(data) {
            return write_all(&self.file, offset, data, sync);
        }
        self.by_buffer(|buffer| {
            for piece in data.chunks(PIECE) {
                buffer.get(piece.len()).copy_from_slice(piece);
                write_all(&self.file, offset, buffer.get(piece.len()), sync)?;
                offset += piece.len() as u64;
            }
            Ok(())
        })
    }

    /// Writes whole blocks that are in parts, [`PIECE`] bytes at most.
    pub(crate) fn write_parts(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let _shared = self.past_cache();
        self.by_buffer(|buffer| {
            let mut len = 0;
            for part in parts {
                buffer.get(len + part.len())[len..].copy_from_slice(part);
                len += part.len();
            }
            write_all(&self.file, offset, buffer.get(len), false)
        })
    }
}

/// Writes `data`; with `sync` it is on stable storage on return.
pub(crate) fn write_all(file: &File, mut offset: u64, mut data: &[u8], sync: bool) -> io::Result<()> {
    if !sync {
        return file.write_all_at(data, offset);
    }
    while !data.is_empty() {
        match pwritev2(file, &[IoSlice::new(data)], offset, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                data = &data[n..];
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::image::Image;
    use std::fs;
    use std::io::IoSlice;
    use std::ops::Range;
    use std::thread;

    const SIZE: usize = (256 << 10) + 100;
    const THREADS: usize = 4;

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % limit
        }

        /// Part of a range; often in whole blocks where that has some.
        fn part(&mut self, of: &Range<usize>) -> Range<usize> {
            let blocks = of.start.next_multiple_of(4096)..of.end / 4096 * 4096;
            if self.below(2) == 0 && blocks.start < blocks.end {
                let first = blocks.start / 4096 + self.below(blocks.len() / 4096);
                let last = first + 1 + self.below(blocks.end / 4096 - first);
                return first * 4096..last * 4096;
            }
            let start = of.start + self.below(of.len());
            start..start + 1 + self.below(of.end - start)
        }
    }

    /// A thread changes and reads its ranges, which share blocks with those of others.
    fn disturb(
        image: &Image,
        mut mine: Vec<(Range<usize>, Vec<u8>)>,
        mut random: Random,
    ) -> Vec<(Range<usize>, Vec<u8>)> {
        for round in 0..60 {
            let which = random.below(mine.len());
            let (range, model) = &mut mine[which];
            let part = random.part(range);
            let inner = &mut model[part.start - range.start..part.end - range.start];
            let offset = part.start as u64;
            match random.below(4) {
                0 => {
                    inner.fill(0);
                    image.zero(offset, part.len() as u64, round % 2 == 0).unwrap();
                }
                1 => {
                    // At an address that suits nothing, or everything.
                    let mut got = vec![1; part.len() + 1];
                    let at = random.below(2);
                    image.read(offset, &mut got[at..part.len() + at]).unwrap();
                    assert!(got[at..part.len() + at] == *inner, "{part:?} after {round} rounds");
                }
                _ => {
                    inner.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
                    image.write(offset, inner, random.below(8) == 0).unwrap();
                }
            }
        }
        mine
    }

    #[test]
    fn requests_at_the_same_time_disturb_none_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        for seed in 1..25 {
            let path = dir.path().join(format!("{seed}.img"));
            let image = Image::create(&path, SIZE as u64).unwrap().direct();
            let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let mut cuts: Vec<_> =
                (0..40).map(|n| random.below(SIZE >> 12) * 4096 + n % 2 * random.below(4096)).collect();
            cuts.extend([0, SIZE]);
            cuts.sort_unstable();
            cuts.dedup();
            let ranges: Vec<_> = cuts.windows(2).map(|w| w[0]..w[1]).collect();
            let image = &image;
            let done: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS)
                    .map(|n| {
                        let mine = ranges.iter().skip(n).step_by(THREADS);
                        let mine = mine.map(|r| (r.clone(), vec![0; r.len()])).collect();
                        let random = Random(random.0.wrapping_add(n as u64 * 77));
                        scope.spawn(move || disturb(image, mine, random))
                    })
                    .collect();
                threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
            });
            let mut expected = vec![0; SIZE];
            done.iter().for_each(|(range, model)| expected[range.clone()].copy_from_slice(model));
            let mut got = vec![1; SIZE];
            image.read(0, &mut got).unwrap();
            assert!(got == expected, "read past the page cache, seed {seed}");
            assert!(fs::read(&path).unwrap() == expected, "read through it, seed {seed}");
        }
    }

    #[test]
    fn what_is_written_behind_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.img");
        let image = Image::create(&path, 4 << 20).unwrap().direct();
        let mut expected = vec![0; 4 << 20];
        // Long and short ones, whole blocks and not, more parts than the kernel takes at once.
        for (offset, lens) in [
            (0, vec![512 << 10]),
            (512, vec![100, 412, 3]),
            (4096, vec![128 << 10, 4096]),
            (1 << 20, vec![17; 3000]),
            (2 << 20, vec![100_000, 31_072, 4096]),
        ] {
            let data: Vec<u8> = (0..lens.iter().sum()).map(|i: usize| (i % 251) as u8 + 1).collect();
            let mut rest = &data[..];
            let parts: Vec<_> =
                lens.iter().map(|len| IoSlice::new(rest.split_off(..*len).unwrap())).collect();
            image.write_behind(offset as u64, &parts).unwrap();
            expected[offset..offset + data.len()].copy_from_slice(&data);
        }
        let mut got = vec![1; 4 << 20];
        image.read(0, &mut got).unwrap();
        assert!(got == expected);
        image.write(512, &[9; 512], true).unwrap();
        expected[512..1024].fill(9);
        assert!(fs::read(&path).unwrap() == expected);
        assert!(!image.is_synced());
        image.sync().unwrap();
    }
}
