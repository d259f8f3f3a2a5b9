//! A note beside an image that is not, or may not be, a disk that a guest can be started from.
//!
//! ```text
//!            receive              copy complete            activate, image on stable storage
//!  (no note) ───────► copying ────────────────► following ──────────────────────────────────► (no note)
//! ```
//! While a standby follows, any moment may leave the image between two epochs, so `following` is written once and
//! stands for all of them: only a standby that takes over removes it.

use crate::beside;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The initial copy has not been completed.
    Copying,
    /// The image follows a primary.
    Following,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Mark::Copying => "copying\n",
            Mark::Following => "following\n",
        }
    }
}

/// Where the note of an image is.
#[derive(Clone, Debug)]
pub struct Marker {
    path: PathBuf,
}

impl Marker {
    /// The note of `image`: see [`beside`].
    pub fn of(image: &Path, config_dir: &Path) -> Marker {
        Marker { path: beside(image, config_dir) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the note says; `None` where there is none. A note that cannot be understood counts as the worse one.
    pub fn read(&self) -> io::Result<Option<Mark>> {
        match fs::read(&self.path) {
            Ok(text) if text == Mark::Following.word().as_bytes() => Ok(Some(Mark::Following)),
            Ok(_) => Ok(Some(Mark::Copying)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces the note, atomically and on stable storage.
    pub fn write(&self, mark: Mark) -> io::Result<()> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        remove(&draft)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(mark.word().as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.sync_directory()
    }

    /// Removes the note. Idempotent.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_note_is_private_and_says_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker::of(&dir.path().join("web.img"), Path::new("/elsewhere"));
        assert_eq!(marker.path(), dir.path().join("web.img.aventine"));
        assert_eq!(marker.read().unwrap(), None);
        for mark in [Mark::Copying, Mark::Following] {
            marker.write(mark).unwrap();
            assert_eq!(marker.read().unwrap(), Some(mark));
        }
        assert_eq!(fs::metadata(marker.path()).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(marker.path(), "follow").unwrap();
        assert_eq!(marker.read().unwrap(), Some(Mark::Copying));
        marker.remove().unwrap();
        marker.remove().unwrap();
        assert_eq!(marker.read().unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no draft is left");
    }

    #[test]
    fn the_note_of_a_device_outlives_a_reboot() {
        let marker = Marker::of(Path::new("/dev/vg0/web"), Path::new("/etc/aventine"));
        assert_eq!(marker.path(), Path::new("/etc/aventine/dev-vg0-web.aventine"));
    }
}
