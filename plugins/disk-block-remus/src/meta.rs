//! The metadata of an image: who it belongs to, which point in time both sides know, and what changed since.
//!
//! ```text
//! 0      magic 8, version u16, role u8, closed u8, 0 u32, size u64, block u64, region u64,
//!        id 16, point 16, previous 16, stamp (inode u64, and if closed seconds i64, nanoseconds i64),
//!        checksum u64: XXH3 of all of the above and of `changed`
//! 4096   changed: a bit for each block that was changed since `point`, in words of 64
//! then, at the next multiple of 4096
//!        marks: a bit for each region that may have been changed since this file was written, in words of 64
//! ```
//! Integers are little-endian. Invariants:
//! - The file is replaced as a whole, by a draft on stable storage that is renamed. Only the marks are written in place, and
//!   in place they are only ever added to: whichever of these writes a power loss keeps, a region whose mark was on stable
//!   storage stays marked.
//! - `changed` and the marks together cover every block that was changed since `point`.
//! - A file that cannot be understood is damaged, not absent: no guest is started beside it.
//!
//! It stands beside the image, or in the configuration's directory for a device, because `/dev` does not outlive a reboot.

use crate::blocks::{Blocks, REGION, block_of};
use aventine_disk_common::beside;
use aventine_disk_common::image::Stamp;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"AVENDISK";
const VERSION: u16 = 1;
/// Where the bits begin, and what both sets of them are padded to.
const PAGE: u64 = 4096;
/// Bytes of the head with its checksum.
const HEAD: usize = 120;

/// A random name of a point in time, or of a state of the metadata. Zero: none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) [u8; 16]);

impl Id {
    pub(crate) const NONE: Id = Id([0; 16]);

    pub(crate) fn random() -> io::Result<Id> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Id(id))
    }

    pub(crate) fn is_some(self) -> bool {
        self != Id::NONE
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whose image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// A guest's that runs here, or did last.
    Active = 1,
    /// A standby's; complete, perhaps between two epochs.
    Following = 2,
    /// A standby's; a copy or a resync was not completed.
    Copying = 3,
    /// A guest's that the other side owns now.
    Outdated = 4,
}

/// The metadata without the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) role: Role,
    /// The image's; the time is that of its last change, once it was closed in order.
    pub(crate) stamp: Stamp,
    pub(crate) closed: bool,
    pub(crate) size: u64,
    /// Renewed with every replacement.
    pub(crate) id: Id,
    /// Both sides' images were the same then, but for what either has changed since.
    pub(crate) point: Id,
    /// The point that the other side may still have instead.
    pub(crate) previous: Id,
}

/// What was found beside an image.
pub(crate) enum Found {
    Nothing,
    /// Something that is no metadata of this version.
    Damaged,
    Meta(Box<Meta>),
}

/// Why metadata could not be replaced.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// Those from before are there.
    Before(io::Error),
    /// Either may be there after a power loss.
    After(io::Error),
}

/// Metadata as they were found.
pub(crate) struct Meta {
    pub(crate) head: Head,
    /// Everything that may have changed since the head's point, where blocks have the size that they have here.
    pub(crate) changed: Option<Blocks>,
}

/// Where the metadata of an image are.
#[derive(Clone, Debug)]
pub(crate) struct Place(PathBuf);

/// The metadata as they are on stable storage, open for marks.
pub(crate) struct Current {
    file: File,
    marks: u64,
    #[cfg(test)]
    place: Place,
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

fn bytes(blocks: &Blocks) -> Vec<u8> {
    blocks.words().flat_map(u64::to_le_bytes).collect()
}

fn parse(bits: &[u8], into: &Blocks) -> Option<()> {
    let mut words = bits.chunks_exact(8).enumerate();
    words
        .all(|(at, word)| word.try_into().is_ok_and(|w| into.or_word(at, u64::from_le_bytes(w))))
        .then_some(())
}

impl Place {
    pub(crate) fn of(image: &Path, config_dir: &Path) -> Place {
        Place(beside(image, config_dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn read(&self) -> io::Result<Found> {
        match fs::read(&self.0) {
            Ok(file) => Ok(decode(&file).map_or(Found::Damaged, |meta| Found::Meta(Box::new(meta)))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Replaces the metadata, atomically and on stable storage.
    pub(crate) fn replace(
        &self,
        head: &Head,
        changed: &Blocks,
        marks: &Blocks,
    ) -> Result<Current, ReplaceError> {
        let mut draft = self.0.clone().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let file = self.draft(&draft, &encode(head, changed, marks)).map_err(|error| {
            // It may have filled the file system.
            let _ = fs::remove_file(&draft);
            ReplaceError::Before(error)
        })?;
        let directory = self.0.parent().filter(|p| !p.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new(".")));
        directory.and_then(|d| d.sync_all()).map_err(ReplaceError::After)?;
        #[cfg(test)]
        crate::tests::power::note(&self.0, || crate::tests::power::Op::Replaced);
        let marks = PAGE + padded(changed.words().count() as u64 * 8);
        Ok(Current {
            file,
            marks,
            #[cfg(test)]
            place: self.clone(),
        })
    }

    fn draft(&self, draft: &Path, text: &[u8]) -> io::Result<File> {
        match fs::remove_file(draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(draft)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(draft, &self.0)?;
        #[cfg(test)]
        crate::tests::power::note(&self.0, || crate::tests::power::Op::Replace(text.to_vec()));
        Ok(file)
    }
}

impl Current {
    /// Writes words of the marks, and has them on stable storage on return.
    pub(crate) fn mark(&self, words: impl Iterator<Item = (usize, u64)>) -> io::Result<()> {
        for (at, bits) in words {
            let (offset, bits) = (self.marks + at as u64 * 8, bits.to_le_bytes());
            self.file.write_all_at(&bits, offset)?;
            #[cfg(test)]
            crate::tests::power::note(&self.place.0, || crate::tests::power::Op::Mark(offset as usize, bits));
        }
        self.file.sync_data()?;
        #[cfg(test)]
        crate::tests::power::note(&self.place.0, || crate::tests::power::Op::Marked);
        Ok(())
    }
}

fn encode(head: &Head, changed: &Blocks, marks: &Blocks) -> Vec<u8> {
    let mut text = MAGIC.to_vec();
    text.extend(VERSION.to_le_bytes());
    text.extend([head.role as u8, u8::from(head.closed)]);
    text.extend([0; 4]);
    [head.size, block_of(head.size), REGION].iter().for_each(|n| text.extend(n.to_le_bytes()));
    [head.id, head.point, head.previous].iter().for_each(|id| text.extend(id.0));
    text.extend(head.stamp.inode.to_le_bytes());
    text.extend(head.stamp.seconds.to_le_bytes());
    text.extend(head.stamp.nanoseconds.to_le_bytes());
    let changed = bytes(changed);
    text.extend(sum(&text, &changed).to_le_bytes());
    text.resize(PAGE as usize, 0);
    text.extend(changed);
    text.resize(padded(text.len() as u64) as usize, 0);
    text.extend(bytes(marks));
    text.resize(padded(text.len() as u64) as usize, 0);
    text
}

fn sum(head: &[u8], changed: &[u8]) -> u64 {
    let mut hash = XxHash3_64::new();
    hash.write(head);
    hash.write(changed);
    hash.finish()
}

fn decode(file: &[u8]) -> Option<Meta> {
    let head = file.get(..HEAD)?;
    let number = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let signed = |at: usize| number(at).map(u64::cast_signed);
    let id = |at: usize| head.get(at..at + 16)?.try_into().ok().map(Id);
    if head[..8] != *MAGIC || head[8..10] != VERSION.to_le_bytes() {
        return None;
    }
    let role = match head[10] {
        1 => Role::Active,
        2 => Role::Following,
        3 => Role::Copying,
        4 => Role::Outdated,
        _ => return None,
    };
    let stamp = Stamp { inode: number(88)?, seconds: signed(96)?, nanoseconds: signed(104)? };
    let (size, block, region) = (number(16)?, number(24)?, number(32)?);
    let length = |unit: u64| {
        let words = (unit > 0).then(|| size.div_ceil(unit).div_ceil(64))?;
        usize::try_from(words.checked_mul(8)?).ok()
    };
    let changed = file.get(PAGE as usize..)?.get(..length(block)?)?;
    if sum(&head[..HEAD - 8], changed) != number(HEAD - 8)? {
        return None;
    }
    let marks = PAGE.checked_add(padded(changed.len() as u64))?;
    let marks = file.get(marks as usize..)?.get(..length(region)?)?;
    let head =
        Head { role, stamp, closed: head[11] != 0, size, id: id(40)?, point: id(56)?, previous: id(72)? };
    let same = block == block_of(size) && region == REGION;
    let changed = if same { Some(union(size, changed, marks)?) } else { None };
    Some(Meta { head, changed })
}

/// The changed blocks, and all those of the marked regions.
fn union(size: u64, changed: &[u8], marks: &[u8]) -> Option<Blocks> {
    let block = block_of(size);
    let blocks = Blocks::of(size, block);
    parse(changed, &blocks)?;
    let regions = Blocks::of(size, REGION);
    parse(marks, &regions)?;
    let (per, all) = (REGION / block, size.div_ceil(block));
    for range in regions.ranges() {
        blocks.insert((range.start * per).min(all)..(range.end * per).min(all));
    }
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn head(size: u64) -> Head {
        Head {
            role: Role::Following,
            stamp: Stamp { inode: 7, ..Stamp::default() },
            closed: false,
            size,
            id: Id([1; 16]),
            point: Id([2; 16]),
            previous: Id::NONE,
        }
    }

    fn read(place: &Place) -> Meta {
        match place.read().unwrap() {
            Found::Meta(meta) => *meta,
            Found::Nothing => panic!("nothing is there"),
            Found::Damaged => panic!("it is damaged"),
        }
    }

    #[test]
    fn what_was_written_is_read_and_marks_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(&dir.path().join("web.img"), Path::new("/elsewhere"));
        assert_eq!(place.path(), dir.path().join("web.img.aventine"));
        assert!(matches!(place.read().unwrap(), Found::Nothing));
        let size = 300 * REGION + 17;
        let (changed, marks) = (Blocks::of(size, block_of(size)), Blocks::of(size, REGION));
        changed.insert(5..9);
        marks.insert(300..301);
        let stamp = Stamp { inode: 7, seconds: -3, nanoseconds: 5 };
        let closed = Head { stamp, closed: true, role: Role::Active, ..head(size) };
        for head in [head(size), closed] {
            let current = place.replace(&head, &changed, &marks).unwrap();
            let meta = read(&place);
            assert_eq!(meta.head, head);
            let (per, all) = (REGION / block_of(size), size.div_ceil(block_of(size)));
            assert_eq!(meta.changed.unwrap().ranges(), [5..9, 300 * per..all]);
            current.mark([(1, 0b10)].into_iter()).unwrap();
            assert_eq!(read(&place).changed.unwrap().ranges(), [5..9, 65 * per..66 * per, 300 * per..all]);
        }
        assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn what_cannot_be_understood_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(&dir.path().join("web.img"), Path::new("/elsewhere"));
        let blocks = Blocks::of(1 << 20, block_of(1 << 20));
        let whole = encode(&head(1 << 20), &blocks, &Blocks::of(1 << 20, REGION));
        for harmed in [&b"following\n"[..], b"", &whole[..4096], &whole[..HEAD]] {
            fs::write(place.path(), harmed).unwrap();
            assert!(matches!(place.read().unwrap(), Found::Damaged));
        }
        for at in (0..HEAD).chain([4096]) {
            let mut harmed = whole.clone();
            harmed[at] ^= 4;
            assert!(decode(&harmed).is_none(), "{at}");
        }
    }

    #[test]
    fn the_metadata_of_a_device_outlive_a_reboot() {
        let place = Place::of(Path::new("/dev/vg0/web"), Path::new("/etc/aventine"));
        assert_eq!(place.path(), Path::new("/etc/aventine/dev-vg0-web.aventine"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(mut bytes in proptest::collection::vec(any::<u8>(), 0..6000), sized in any::<[u64; 3]>()) {
            let _ = decode(&bytes);
            // Past the checks at the front.
            let valid = encode(&head(1 << 20), &Blocks::of(1 << 20, block_of(1 << 20)), &Blocks::of(1 << 20, REGION));
            let front = 40.min(bytes.len());
            bytes[..front].copy_from_slice(&valid[..front]);
            if front == 40 {
                sized.iter().enumerate().for_each(|(i, n)| bytes[16 + i * 8..24 + i * 8].copy_from_slice(&n.to_le_bytes()));
            }
            let _ = decode(&bytes);
        }
    }
}
