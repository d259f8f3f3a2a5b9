//! The image: a regular file or a block device, locked while it is open, read and written at positions, past the page
//! cache where that is wanted and possible (`direct`).

use crate::direct::{Direct, PIECE, write_all};
pub use crate::error::{ImageError, OpenError};
use crate::lock;
use crate::steps::{self, Step};
use aventine_api::{ErrorCode, PluginError};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, fdatasync, flock, major, minor, seek};
use rustix::io::{Errno, pwritev};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Zeroes to write where the file system cannot make them otherwise, and to compare with.
pub static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Writes behind of so many bytes gain nothing from the page cache.
const LONG: usize = 128 << 10;
/// Every device can make so many bytes zero, where they begin at a multiple.
const BLOCK: u64 = 4096;
/// Slices that the kernel takes at once.
const MOST_PARTS: usize = 1024;

/// Which file an image is, and when it was changed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The file's number in its file system.
    pub inode: u64,
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: i64,
}

/// An open image, locked against every other process.
pub struct Image {
    file: File,
    /// Past the page cache.
    direct: Option<Direct>,
    path: PathBuf,
    size: u64,
    /// Whether it is a block device.
    device: bool,
    /// Whether it was said that the image has grown.
    grown: AtomicBool,
    /// Whether something was written since the last sync began.
    unsynced: AtomicBool,
    /// Held while syncing: whoever finds nothing to sync must know that it has been synced, not that it is being.
    /// `true` once a sync has failed: the kernel then forgets which writes were lost, and a later sync succeeds.
    sync_failed: Mutex<bool>,
}

impl Image {
    /// Opens and locks an existing image.
    pub fn open(path: &Path) -> Result<Image, OpenError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned() },
            io::ErrorKind::ResourceBusy => OpenError::InUse { path: path.to_owned(), holder: None },
            _ => OpenError::Open { path: path.to_owned(), source },
        };
        let kind = fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.to_owned() });
        }
        // On a device, EXCL keeps off what a file system or a volume manager has taken.
        let flags = if kind.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        lock_file(&file, path)?;
        let size = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        Ok(Image::new(file, path, size))
    }

    /// Creates and locks a sparse file.
    pub fn create(path: &Path, size: u64) -> Result<Image, OpenError> {
        let failed = |source| OpenError::Create { path: path.to_owned(), size, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        lock_file(&file, path)?;
        if let Err(error) = file.set_len(size) {
            // An empty file would be refused next time, for its size.
            let _ = fs::remove_file(path);
            return Err(failed(error));
        }
        Ok(Image::new(file, path, size))
    }

    fn new(file: File, path: &Path, size: u64) -> Image {
        let (unsynced, sync_failed) = (AtomicBool::new(true), Mutex::new(false));
        let (path, grown) = (path.to_owned(), AtomicBool::new(false));
        let device = file.metadata().is_ok_and(|m| m.file_type().is_block_device());
        Image { file, direct: None, path, size, device, grown, unsynced, sync_failed }
    }

    /// From now on reads and writes of whole blocks go past the page cache, where the image allows that; says so where it
    /// does not.
    pub fn direct(mut self) -> Image {
        match Direct::of(&self.file) {
            Ok(direct) => self.direct = Some(direct),
            Err(error) => {
                let (image, error) = (self.path.display(), PluginError::new(ErrorCode::Unavailable, error));
                let why = error.chain();
                tracing::info!(%image, why, "the image is read and written through the page cache");
            }
        }
        self
    }

    /// Whether whole blocks go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells that the image is the same file and unchanged; nothing of a device.
    pub fn stamp(&self) -> Stamp {
        match self.file.metadata() {
            Ok(meta) if meta.is_file() => {
                Stamp { inode: meta.ino(), seconds: meta.mtime(), nanoseconds: meta.mtime_nsec() }
            }
            _ => Stamp::default(),
        }
    }

    /// Fills `buf` from `offset`. Page-aligned memory is read into without a copy where the image is direct; so it is with
    /// [`Image::write`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let done = match &self.direct {
            Some(direct) if direct.is_whole(offset, buf.len()) => direct.read(offset, buf),
            direct => {
                let _alone = direct.as_ref().map(Direct::through_cache);
                self.file.read_exact_at(buf, offset)
            }
        };
        done.map_err(|e| {
            let cut = (e.kind() == io::ErrorKind::UnexpectedEof).then(|| self.check_size().err()).flatten();
            cut.unwrap_or_else(|| self.read_error(offset, buf.len() as u64, e))
        })
    }

    /// Writes `data`; with `sync` it is on stable storage on return.
    pub fn write(&self, offset: u64, data: &[u8], sync: bool) -> Result<(), ImageError> {
        if !sync {
            self.unsynced.store(true, Ordering::SeqCst);
        }
        let done = match &self.direct {
            Some(direct) if direct.is_whole(offset, data.len()) => direct.write(offset, data, sync),
            direct => {
                let _alone = direct.as_ref().map(Direct::through_cache);
                write_all(&self.file, offset, data, sync)
            }
        };
        steps::tell(&self.path, &|| Step::Write { offset, data: data.to_vec(), synced: sync });
        done.map_err(|e| self.write_error(offset, data.len() as u64, e))
    }

    /// Writes `parts` one behind the other, where nobody waits for a single write and nobody else writes meanwhile: through
    /// the page cache, which sorts short writes, and keeps those that are written once more; long ones past it.
    pub fn write_behind(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), ImageError> {
        let len = parts.iter().map(|p| p.len()).sum();
        self.unsynced.store(true, Ordering::SeqCst);
        let done = match &self.direct {
            Some(direct) if (LONG..=PIECE).contains(&len) && direct.is_whole(offset, len) => {
                direct.write_parts(offset, parts)
            }
            direct => {
                let _alone = direct.as_ref().map(Direct::through_cache);
                self.write_cached(offset, parts)
            }
        };
        steps::tell(&self.path, &|| {
            let data = parts.iter().flat_map(|p| p.iter().copied()).collect();
            Step::Write { offset, data, synced: false }
        });
        done.map_err(|e| self.write_error(offset, len as u64, e))
    }

    fn write_cached(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if let [only] = parts {
            return self.file.write_all_at(only, offset);
        }
        let mut copy = parts.to_vec();
        let mut rest = &mut copy[..];
        while !rest.is_empty() {
            let most = rest.len().min(MOST_PARTS);
            match pwritev(&self.file, &rest[..most], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes a range zero; without `unmap` its space stays allocated.
    pub fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), ImageError> {
        self.unsynced.store(true, Ordering::SeqCst);
        let done = self.zero_range(offset, len, unmap);
        steps::tell(&self.path, &|| Step::Write { offset, data: vec![0; len as usize], synced: false });
        done.map_err(|e| self.write_error(offset, len, e))
    }

    fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let _alone = self.direct.as_ref().map(Direct::through_cache);
        if !self.device {
            return self.zero_whole(offset, len, unmap);
        }
        // A device takes whole blocks only.
        let end = offset + len;
        let first = offset.next_multiple_of(BLOCK).min(end);
        let last = (end / BLOCK * BLOCK).max(first);
        self.write_zeroes(offset, first - offset)?;
        if last > first {
            self.zero_whole(first, last - first, unmap)?;
        }
        self.write_zeroes(last, end - last)
    }

    fn zero_whole(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let punch = unmap.then_some(FallocateFlags::PUNCH_HOLE);
        for mode in punch.into_iter().chain([FallocateFlags::ZERO_RANGE]) {
            loop {
                match fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    // INVAL: a device with longer blocks.
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        while offset < end {
            let piece = (end - offset).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..piece as usize], offset)?;
            offset += piece;
        }
        Ok(())
    }

    fn read_error(&self, offset: u64, len: u64, error: io::Error) -> ImageError {
        ImageError::Read { path: self.path.clone(), offset, len, source: Arc::new(error) }
    }

    fn write_error(&self, offset: u64, len: u64, error: io::Error) -> ImageError {
        ImageError::Write { path: self.path.clone(), offset, len, source: Arc::new(error) }
    }

    /// Brings everything written so far to stable storage. After a failure every later call fails as well.
    pub fn sync(&self) -> Result<(), ImageError> {
        let mut failed = lock(&self.sync_failed);
        if *failed {
            return Err(ImageError::SyncFailedBefore { path: self.path.clone() });
        }
        self.check_size()?;
        if !self.unsynced.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        steps::tell(&self.path, &|| Step::Sync);
        let done = fdatasync(&self.file);
        steps::tell(&self.path, &|| Step::Synced);
        done.map_err(|e| {
            *failed = true;
            ImageError::Sync { path: self.path.clone(), source: Arc::new(e.into()) }
        })
    }

    /// Whether all of the image is there still. What a guest sees of a disk is fixed when it is opened: an image that has grown
    /// serves as before, one that is cut off has lost something.
    fn check_size(&self) -> Result<(), ImageError> {
        let (was, Some(is)) = (self.size, self.size_now()) else { return Ok(()) };
        if is < was {
            return Err(ImageError::Shrunk { path: self.path.clone(), was, is });
        }
        if is > was && !self.grown.swap(true, Ordering::Relaxed) {
            let image = self.path.display();
            tracing::warn!(
                %image, was, is,
                "the image has grown; a disk cannot be resized while it is in use: the guest sees the new size once both \
                hosts' images have it and the guest is started anew"
            );
        }
        Ok(())
    }

    fn size_now(&self) -> Option<u64> {
        let meta = self.file.metadata().ok()?;
        if meta.is_file() {
            return Some(meta.len());
        }
        // Seeking to the end would move the position that others seek by.
        let sectors =
            fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(meta.rdev()), minor(meta.rdev())));
        sectors.ok()?.trim().parse().ok().map(|n: u64| n * 512)
    }

    /// Where from `offset` on something is allocated, at the latest the end of the image. Up to there it reads as
    /// zero. One caller at a time, here and in [`Image::next_hole`]: both move the file's position.
    pub fn next_data(&self, offset: u64) -> Result<u64, ImageError> {
        match seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => Ok(data.min(self.size)),
            Err(Errno::NXIO) => Ok(self.size),
            // Block devices cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
            Err(e) => Err(self.extent_error(offset, e)),
        }
    }

    /// Where from `offset` on nothing is allocated, at the latest the end of the image. Takes time in proportion to
    /// what is passed over.
    pub fn next_hole(&self, offset: u64) -> Result<u64, ImageError> {
        match seek(&self.file, rustix::fs::SeekFrom::Hole(offset)) {
            Ok(hole) => Ok(hole.min(self.size)),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.size),
            Err(e) => Err(self.extent_error(offset, e)),
        }
    }

    fn extent_error(&self, offset: u64, error: Errno) -> ImageError {
        self.read_error(offset, self.size - offset, error.into())
    }
}

/// The lock belongs to the open file: it ends with the process, however that ends.
fn lock_file(file: &File, path: &Path) -> Result<(), OpenError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN) => Err(OpenError::InUse { path: path.to_owned(), holder: holder(file) }),
        Err(e) => Err(OpenError::Open { path: path.to_owned(), source: e.into() }),
    }
}

/// The process that holds the lock, where the kernel tells.
fn holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let file = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ours = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&file.as_str());
        ours.then(|| fields[4].parse().ok().filter(|&p| p != 0)).flatten()
    })
}

/// For tests of the plugins.
#[doc(hidden)]
impl Image {
    /// An image whose writes fail.
    pub fn broken(path: &Path) -> Image {
        let file = File::open(path).expect("the image");
        let size = file.metadata().expect("the image's size").len();
        Image::new(file, path, size)
    }

    /// Whether nothing was written since the last sync began.
    pub fn is_synced(&self) -> bool {
        !self.unsynced.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.img");
        let image = Image::create(&path, 1 << 20).unwrap();
        let Err(error) = Image::open(&path) else { panic!("opened twice") };
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(image);
        assert_eq!(Image::open(&path).unwrap().size(), 1 << 20);
    }

    #[test]
    fn what_is_no_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Image::open(&dir.path().join("none")), Err(OpenError::Missing { .. })));
        assert!(matches!(Image::open(dir.path()), Err(OpenError::Kind { .. })));
        File::create(dir.path().join("empty")).unwrap();
        assert!(matches!(Image::open(&dir.path().join("empty")), Err(OpenError::Empty { .. })));
        assert!(matches!(Image::create(&dir.path().join("no/dir"), 1), Err(OpenError::Create { .. })));
    }

    #[test]
    fn an_image_that_was_cut_off_is_named_and_one_that_has_grown_serves_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.img");
        for direct in [false, true] {
            let image = Image::create(&path, 1 << 20).unwrap();
            let image = if direct { image.direct() } else { image };
            let resize = |to| OpenOptions::new().write(true).open(&path).unwrap().set_len(to).unwrap();
            resize(2 << 20);
            image.write(0, &[3; 512], false).unwrap();
            image.sync().unwrap();
            assert_eq!(image.size(), 1 << 20);
            resize(1 << 19);
            let error = image.sync().unwrap_err();
            assert!(matches!(error, ImageError::Shrunk { was: 0x10_0000, is: 0x8_0000, .. }), "{error}");
            let error = image.read(1 << 19, &mut [0; 4096]).unwrap_err();
            assert!(matches!(error, ImageError::Shrunk { .. }), "{error}");
            resize(1 << 20);
            image.sync().unwrap();
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn zeroes_keep_or_give_back_the_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.img");
        let image = Image::create(&path, 1 << 20).unwrap();
        assert_eq!(image.next_data(0).unwrap(), 1 << 20);
        assert_eq!(image.next_hole(0).unwrap(), 0);
        image.write(0, &[7; 1 << 20], false).unwrap();
        image.write(100, &[9; 10], true).unwrap();
        assert_eq!(image.next_data(5).unwrap(), 5);
        assert_eq!(image.next_hole(5).unwrap(), 1 << 20);
        let blocks = || fs::metadata(&path).unwrap().blocks();
        image.sync().unwrap();
        let before = blocks();
        image.zero(100_001, 300_000, false).unwrap();
        assert_eq!(blocks(), before);
        image.zero(500_001, 300_000, true).unwrap();
        assert!(blocks() < before);
        image.sync().unwrap();
        let mut expected = vec![7; 1 << 20];
        expected[100..110].fill(9);
        expected[100_001..400_001].fill(0);
        expected[500_001..800_001].fill(0);
        let mut got = vec![1; 1 << 20];
        image.read(0, &mut got).unwrap();
        assert!(got == expected);
        assert!(image.read(1, &mut got).is_err(), "past the end");
    }
}
