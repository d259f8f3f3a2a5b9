//! The guest's file system, outside: made before the guest starts, and looked at in a host's image when nobody runs on it.
//!
//! ```text
//!  volume.img ─► copy ─► e2fsck -p (crashed: replays the journal) ─► e2fsck -fn: clean ─► debugfs ─► ledger.db, ledger.db-wal
//!                                                                          sqlite3: integrity_check, every row ◄─┘
//! ```

use crate::MOUNT;
use crate::guest::{Guest, GuestError};
use crate::ledger::{self, Book};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image's name on both hosts.
pub const IMAGE: &str = "volume.img";
/// How the guest reaches the volume: a key of its disk's table, and the device of QEMU's that goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Frontend {
    key: &'static str,
    device: &'static str,
}

/// By NBD.
pub const NBD: Frontend = Frontend { key: "nbd", device: "virtio-blk-pci,drive=disk1" };
/// By vhost-user-blk.
pub const VHOST_USER: Frontend = Frontend { key: "vhost-user", device: "vhost-user-blk-pci,chardev=disk1" };

impl Frontend {
    /// Both disks of a guest that has it besides the first one, as the configuration has them.
    pub fn disks(self) -> String {
        format!(
            r#"
disk = [
    {{ id = "disk0", plugin = "block-remus", image = "disk.img" }},
    {{ id = "disk1", plugin = "block-remus", image = "{IMAGE}", frontend = "{}" }},
]
"#,
            self.key
        )
    }

    /// The QEMU arguments for the second disk.
    pub fn device(self) -> [String; 2] {
        ["-device".to_owned(), self.device.to_owned()]
    }
}

/// Where the guest finds it.
const GUEST_DEVICE: &str = "/dev/vdb";
/// How `e2fsck` ends when nothing was to be done, and when all was done.
const CLEAN: i32 = 0;
const CORRECTED: i32 = 1;

/// What is wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file cannot be used.
    #[error("Cannot use {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program found something, or does not run.
    #[error("{program} on a copy of {}: {said}", image.display())]
    Program {
        /// Which one.
        program: &'static str,
        /// The image.
        image: PathBuf,
        /// What it printed.
        said: String,
    },
    /// It was not started.
    #[error("Cannot run {program}")]
    Start {
        /// Which one.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An acknowledged transaction is missing, or one is there that was not sent.
    #[error("{} has {found} transactions, but {acknowledged} were acknowledged and {attempted} sent", image.display())]
    Transactions {
        /// The image.
        image: PathBuf,
        /// How many it has.
        found: u64,
        /// How many it must have.
        acknowledged: u64,
        /// How many it may have.
        attempted: u64,
    },
    /// A row is missing or wrong.
    #[error("{} has a row {found:?} and not {expected:?}", image.display())]
    Row {
        /// The image.
        image: PathBuf,
        /// The row.
        found: Option<String>,
        /// What it should be.
        expected: Option<String>,
    },
}

/// Makes an image of `bytes` with a file system that holds what is in `tools`.
pub fn make(image: &Path, bytes: u64, tools: &Path) -> Result<(), VolumeError> {
    let made = File::create(image).and_then(|file| file.set_len(bytes));
    made.map_err(|source| VolumeError::File { path: image.to_owned(), source })?;
    let mut make = Command::new("mkfs.ext4");
    run(make.args(["-q", "-F", "-d"]).arg(tools).arg(image), "mkfs.ext4", image, &[0]).map(drop)
}

/// The guest mounts it.
pub fn mount(guest: &mut Guest) -> Result<(), GuestError> {
    guest.run(&format!("busybox mkdir -p {MOUNT}"))?;
    guest.run(&format!("busybox mount -t ext4 {GUEST_DEVICE} {MOUNT}")).map(drop)
}

/// The guest gives free blocks back to the disk.
pub fn trim(guest: &mut Guest) -> Result<(), GuestError> {
    guest.run(&format!("busybox fstrim {MOUNT}")).map(drop)
}

/// Nothing of it is in use in the guest any more.
pub fn unmount(guest: &mut Guest) -> Result<(), GuestError> {
    guest.run(&format!("busybox umount {MOUNT}")).map(drop)
}

/// Where the guest finds a program that the volume brings.
pub fn program(name: &str) -> String {
    format!("{MOUNT}/bin/{name}")
}

/// How the image was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The guest has unmounted it.
    Unmounted,
    /// In the middle of whatever was written.
    Crashed,
}

/// Looks at a copy of `image`, which nobody writes to: the file system is clean and its database has every transaction of
/// `acknowledged`, at most `attempted`, and nothing else. Answers how many.
pub fn check(image: &Path, left: Left, acknowledged: &Book, attempted: u64) -> Result<u64, VolumeError> {
    let scratch = image.with_extension("copy");
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| VolumeError::File { path, source }
    };
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir(&scratch).map_err(at(&scratch))?;
    let copy = scratch.join(IMAGE);
    fs::copy(image, &copy).map_err(at(image))?;
    if left == Left::Crashed {
        run(Command::new("e2fsck").arg("-p").arg(&copy), "e2fsck -p", image, &[CLEAN, CORRECTED])?;
    }
    run(Command::new("e2fsck").arg("-fn").arg(&copy), "e2fsck -fn", image, &[CLEAN])?;
    for name in [ledger::FILE.to_owned(), format!("{}-wal", ledger::FILE)] {
        let request = format!("dump /{name} {}", scratch.join(&name).display());
        run(Command::new("debugfs").args(["-R", &request]).arg(&copy), "debugfs", image, &[0])?;
    }
    let found = check_database(image, &scratch.join(ledger::FILE), acknowledged, attempted)?;
    fs::remove_dir_all(&scratch).map_err(at(&scratch))?;
    Ok(found)
}

fn check_database(
    image: &Path,
    database: &Path,
    acknowledged: &Book,
    attempted: u64,
) -> Result<u64, VolumeError> {
    let sql = format!("PRAGMA integrity_check; {}", ledger::PRINT);
    let printed = run(Command::new("sqlite3").arg(database).arg(sql), "sqlite3", image, &[0])?;
    let mut lines = printed.lines();
    if lines.next() != Some("ok") {
        return Err(VolumeError::Program { program: "integrity_check", image: image.into(), said: printed });
    }
    let total = printed.lines().next_back().unwrap_or_default();
    let found = total.split('|').next().and_then(|count| count.parse().ok()).unwrap_or(0);
    let promised = acknowledged.transactions;
    if !(promised..=attempted).contains(&found) {
        let image = image.to_owned();
        return Err(VolumeError::Transactions { image, found, acknowledged: promised, attempted });
    }
    let book = acknowledged.at(found);
    let mut expected = book.lines();
    loop {
        let (line, expected) = (lines.next(), expected.next());
        if line != expected.as_deref() {
            return Err(VolumeError::Row { image: image.into(), found: line.map(str::to_owned), expected });
        }
        if line.is_none() {
            return Ok(found);
        }
    }
}

/// Runs a program that must end with one of `codes`; answers what it printed.
fn run(
    command: &mut Command,
    program: &'static str,
    image: &Path,
    codes: &[i32],
) -> Result<String, VolumeError> {
    let output = command.output().map_err(|source| VolumeError::Start { program, source })?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.code().is_some_and(|code| codes.contains(&code)) {
        true => Ok(said(&output.stdout)),
        false => {
            let said = said(&[output.stdout, output.stderr].concat());
            Err(VolumeError::Program { program, image: image.to_owned(), said })
        }
    }
}

/// Where two images differ first.
pub fn difference(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(Some(a.metadata()?.len().min(b.metadata()?.len())));
    }
    loop {
        let len = a.read(&mut left)?;
        b.read_exact(&mut right[..len])?;
        if let Some(at) = (0..len).find(|at| left[*at] != right[*at]) {
            return Ok(Some(offset + at as u64));
        }
        if len == 0 {
            return Ok(None);
        }
        offset += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;

    /// An image whose database had `damage` done to it after ten transactions.
    fn image(dir: &Path, damage: &str) -> (PathBuf, Book) {
        let (image, tools) = (dir.join(IMAGE), dir.join("tools"));
        fs::create_dir(&tools).unwrap();
        let mut database = Database::open("sqlite3".as_ref(), &tools.join(ledger::FILE)).unwrap();
        let mut book = Book::new(1);
        database.ask(ledger::CREATE).unwrap();
        while book.transactions < 10 {
            database.ask(&book.add()).unwrap();
        }
        database.ask(damage).unwrap();
        // While it is open: some of it is in the log.
        make(&image, 16 << 20, &tools).unwrap();
        (image, book)
    }

    #[test]
    fn a_whole_volume_passes() {
        let dir = tempfile::tempdir().unwrap();
        let (image, book) = image(dir.path(), "");
        for left in [Left::Unmounted, Left::Crashed] {
            assert_eq!(check(&image, left, &book, 10).unwrap(), 10);
            assert_eq!(check(&image, left, &book.at(8), 12).unwrap(), 10);
        }
    }

    #[test]
    fn a_transaction_that_was_acknowledged_or_not_even_sent_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (image, book) = image(dir.path(), "");
        for (acknowledged, attempted) in [(11, 12), (8, 9)] {
            let error = check(&image, Left::Crashed, &book.at(acknowledged), attempted).unwrap_err();
            assert!(matches!(error, VolumeError::Transactions { found: 10, .. }), "{error}");
        }
    }

    #[test]
    fn a_wrong_and_a_missing_row_are_told() {
        for damage in ["UPDATE entry SET value = 0 WHERE number = 5;", "DELETE FROM entry WHERE number = 10;"]
        {
            let dir = tempfile::tempdir().unwrap();
            let (image, book) = image(dir.path(), damage);
            let error = check(&image, Left::Crashed, &book, 10).unwrap_err();
            assert!(matches!(error, VolumeError::Row { .. }), "{error}");
        }
    }

    #[test]
    fn a_damaged_file_system_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (image, book) = image(dir.path(), "");
        let mut debugfs = Command::new("debugfs");
        debugfs.args(["-w", "-R", &format!("clri /{}", ledger::FILE)]).arg(&image);
        run(&mut debugfs, "debugfs", &image, &[0]).unwrap();
        let error = check(&image, Left::Crashed, &book, 10).unwrap_err();
        assert!(matches!(error, VolumeError::Program { program: "e2fsck -fn", .. }), "{error}");
    }

    #[test]
    fn images_are_compared_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        let mut bytes = vec![1; (2 << 20) + 3];
        fs::write(&a, &bytes).unwrap();
        fs::write(&b, &bytes).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), None);
        *bytes.last_mut().unwrap() = 2;
        fs::write(&b, &bytes).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some((2 << 20) + 2));
        fs::write(&b, &bytes[..1]).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some(1));
    }
}
