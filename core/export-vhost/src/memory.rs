//! Which pages of guest memory were written here.
//!
//! Invariants:
//! - vm-memory marks what it writes after the write. So a page whose mark is taken away holds what was written, and one that is
//!   written meanwhile is marked again.
//! - A new table of memory takes over the marks of the old one. No request is under way then.

use aventine_api::{PAGE_SIZE, PageBitmap};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub(crate) type Memory = GuestMemoryMmap<Written>;

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of an open file.
    pub fn of(file: impl AsFd) -> Result<FileId, Errno> {
        let stat = fstat(file)?;
        Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Guest memory that is the beginning of a file.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The file.
    pub file: FileId,
    /// Number of the guest page that is the file's first.
    pub first_page: u64,
    /// How many there are.
    pub pages: u64,
}

/// Written pages cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Not guest memory.
    #[error(
        "The disk's requests reach {0} pages that are not in the guest's RAM: only memory of the RAM backend may be given to it"
    )]
    NotRam(u64),
}

/// Pages written in a region, each a bit, and the same in QEMU's own log while it keeps one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    pages: Arc<[AtomicU64]>,
    /// Where the slice begins, in bytes.
    base: usize,
    log: BitmapMmapRegion,
}

impl Written {
    fn word(&self, page: usize) -> Option<(&AtomicU64, u64)> {
        Some((self.pages.get(page / 64)?, 1 << (page % 64)))
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn forget(&self) {
        self.pages.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    fn any(&self) -> bool {
        self.pages.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Takes over the marks of `old`.
    fn take_over(&self, old: &Written) {
        for (new, old) in self.pages.iter().zip(&*old.pages) {
            new.fetch_or(old.swap(0, Ordering::AcqRel), Ordering::AcqRel);
        }
    }
}

impl Bitmap for Written {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.mark_dirty(self.base + offset, len);
        let (first, Some(last)) = (self.base + offset, (self.base + offset + len).checked_sub(1)) else {
            return;
        };
        if len > 0 {
            for page in first / PAGE_SIZE..=last / PAGE_SIZE {
                if let Some((word, bit)) = self.word(page) {
                    word.fetch_or(bit, Ordering::AcqRel);
                }
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let word = self.word((self.base + offset) / PAGE_SIZE);
        word.is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn slice_at(&self, offset: usize) -> Written {
        Written { pages: Arc::clone(&self.pages), base: self.base + offset, log: self.log.clone() }
    }
}

impl WithBitmapSlice<'_> for Written {
    type S = Written;
}

impl BitmapSlice for Written {}

impl NewBitmap for Written {
    fn with_len(len: usize) -> Written {
        let words = len.div_ceil(PAGE_SIZE).div_ceil(64);
        Written { pages: (0..words).map(|_| AtomicU64::new(0)).collect(), ..Written::default() }
    }
}

impl BitmapReplace for Written {
    type InnerBitmap = AtomicBitmapMmap;

    fn replace(&self, log: AtomicBitmapMmap) {
        self.log.replace(log);
    }
}

/// The marks of one region, and where it is.
struct Piece {
    file: FileId,
    /// Its first page in the file.
    first: u64,
    written: Written,
}

impl Piece {
    fn is_where(&self, other: &Piece) -> bool {
        (self.file, self.first, self.written.pages.len())
            == (other.file, other.first, other.written.pages.len())
    }
}

/// What was written, of the newest table of memory and of what earlier ones had besides.
#[derive(Default)]
pub(crate) struct Tracked(Mutex<Vec<Piece>>);

impl Tracked {
    /// From now on requests write to `memory`; none is under way.
    pub(crate) fn renew(&self, memory: &Memory) -> Result<(), Errno> {
        let mut pieces = Vec::new();
        for region in memory.iter() {
            let offset = region.file_offset().ok_or(Errno::NXIO)?;
            // Collapsing pages of this mapping into a huge one would take them out of QEMU's page table too, and the guest's own
            // writes would go unseen.
            // SAFETY: the advice changes how the mapping, which `memory` keeps, is backed, not what it holds.
            unsafe {
                madvise(region.as_ptr().cast(), region.len() as usize, Advice::LinuxNoHugepage)?;
            }
            pieces.push(Piece {
                file: FileId::of(offset.file())?,
                first: offset.start() / PAGE_SIZE as u64,
                written: region.bitmap(),
            });
        }
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for old in current.drain(..) {
            match pieces.iter().find(|new| new.is_where(&old)) {
                Some(new) => new.written.take_over(&old.written),
                // Kept for its marks: memory that was taken away may come back.
                None if old.written.any() => pieces.push(old),
                None => {}
            }
        }
        *current = pieces;
        Ok(())
    }

    pub(crate) fn take(&self, ram: &[Part], pages: &mut PageBitmap) -> Result<(), TakeError> {
        let mut strange = 0;
        for piece in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let parts = || ram.iter().filter(|part| part.file == piece.file);
            for (at, word) in piece.written.pages.iter().enumerate() {
                if word.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let mut bits = word.swap(0, Ordering::AcqRel);
                while bits != 0 {
                    let page = piece.first + at as u64 * 64 + u64::from(bits.trailing_zeros());
                    bits &= bits - 1;
                    match parts().find(|part| page < part.pages) {
                        Some(part) => pages.set_range(part.first_page + page, 1),
                        None => strange += 1,
                    }
                }
            }
        }
        if strange > 0 { Err(TakeError::NotRam(strange)) } else { Ok(()) }
    }
}
