//! The state directory of one guest on this host: where it is, and the lock that keeps a second program out. One for both
//! roles, because a program may come to play either.
//!
//! ```text
//! STATE_DIR/            0700
//!   lock                held (flock) by the running program; its text is the program's pid
//!   admin.sock          0600; see admin.rs
//!   …                   sockets and records of the plugins and the engine
//! ```
//! The lock goes with the process that holds it, however that ends. Whoever holds it may remove a socket left behind.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(
        "Neither XDG_STATE_HOME nor HOME is set and this is not root: say where to keep state with --state-dir DIR"
    )]
    NoBase,
    #[error("Could not make the state directory {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("Could not use the state directory {}", path.display())]
    Use { path: PathBuf, source: io::Error },
    #[error("{} is not a directory; --state-dir needs one", .0.display())]
    NotDirectory(PathBuf),
    #[error(
        "The state directory {} belongs to user {owner} and this is user {me}; use another --state-dir",
        path.display()
    )]
    Foreign { path: PathBuf, owner: u32, me: u32 },
    #[error("Others may write to the state directory {} (mode {mode:03o}); run: chmod 700 {}", path.display(), path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("Already running for this guest: {holder} holds {}", path.display())]
    Taken { holder: String, path: PathBuf },
    #[error("Could not lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// The directory that the guests' default state directories are in. It outlives a reboot: a primary whose host crashed
/// finds there which session it left open.
pub(crate) fn base() -> Result<PathBuf, PlaceError> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/aventine".into());
    }
    let home = |variable: &str| std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let state = home("XDG_STATE_HOME").or_else(|| Some(home("HOME")?.join(".local/state")));
    Ok(state.ok_or(PlaceError::NoBase)?.join("aventine"))
}

/// The default state directory of a guest.
pub(crate) fn default(guest: &str) -> Result<PathBuf, PlaceError> {
    Ok(base()?.join(guest))
}

/// A state directory in use by this program, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    _lock: File,
}

impl Place {
    /// Makes the directory if need be and locks it. From here on, files that this program makes are private.
    pub(crate) fn take(dir: &Path) -> Result<Place, PlaceError> {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let failed = |source| PlaceError::Make { path: dir.to_owned(), source };
        let dir = std::path::absolute(dir).map_err(failed)?;
        match DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            Err(_) if dir.exists() && !dir.is_dir() => return Err(PlaceError::NotDirectory(dir)),
            made => made.map_err(failed)?,
        }
        private(&dir)?;
        let lock = lock(&dir.join("lock"))?;
        Ok(Place { dir, _lock: lock })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Whether a directory is this user's own. Nothing is changed: it may be somebody's directory named by mistake.
fn private(dir: &Path) -> Result<(), PlaceError> {
    let path = dir.to_owned();
    let meta = dir.metadata().map_err(|source| PlaceError::Use { path: path.clone(), source })?;
    let (owner, me) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != me {
        return Err(PlaceError::Foreign { path, owner, me });
    }
    match meta.mode() & 0o777 {
        mode if mode & 0o022 != 0 => Err(PlaceError::Open { path, mode }),
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, PlaceError> {
    let failed = |source| PlaceError::Lock { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(PlaceError::Taken { holder: holder(&mut file), path: path.to_owned() });
        }
        Err(e) => return Err(failed(e.into())),
    }
    let pid = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(failed)?;
    Ok(file)
}

/// Who holds the lock, as far as it has said so yet.
fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    match file.read_to_string(&mut pid) {
        Ok(1..) => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_second_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web/primary");
        let place = Place::take(&path).unwrap();
        assert_eq!(fs::metadata(place.dir()).unwrap().mode() & 0o777, 0o700);
        let refused = Place::take(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {} holds", std::process::id())), "{refused}");
        drop(place);
        Place::take(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Place::take(dir.path()), Err(PlaceError::Open { mode: 0o777, .. })));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Place::take(&file), Err(PlaceError::NotDirectory(_))));
    }
}
