//! Verdict files: the test-and-set itself.

use aventine_api::{SessionId, Side};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// More than any verdict has.
const MAX_LEN: u64 = 256;

/// Why a verdict could not be made or read. In every case nothing is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerdictError {
    #[error("{} is not a directory this host can see; create it, or mount what both hosts share", .dir.display())]
    Missing { dir: PathBuf, source: io::Error },
    #[error("{} is on a file system without hard links; share one that has them, such as NFS", .dir.display())]
    NoLinks { dir: PathBuf, source: io::Error },
    #[error("Could not write in {}", .dir.display())]
    Write { dir: PathBuf, source: io::Error },
    #[error("Could not read {}", .file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("Could not decide with {}", .file.display())]
    Undecided { file: PathBuf, source: io::Error },
    #[error(
        "{} holds no verdict ({found:?}); find out which host runs the guest, then write `{session} primary` or \
         `{session} standby` into it", .file.display()
    )]
    Corrupt { file: PathBuf, session: SessionId, found: String },
}

/// The verdicts about one guest.
pub(crate) struct Verdicts {
    pub(crate) dir: PathBuf,
    /// Safe in a file's name.
    pub(crate) guest: String,
}

impl Verdicts {
    /// Which side owns the guest; `side` if nobody did.
    pub(crate) fn claim(&self, session: SessionId, side: Side) -> Result<Side, VerdictError> {
        let file = self.dir.join(format!("{}.{session}", self.guest));
        if let Some(owner) = self.read(&file, session)? {
            return Ok(owner);
        }
        let prepared =
            Temporary::write(&self.dir, &format!(".{}.{session}", self.guest), &line(session, side))
                .map_err(|source| self.write_error(source))?;
        let linked = fs::hard_link(&prepared.path, &file);
        drop(prepared);
        // Linked or not, or not known: what the file says is the answer.
        match (self.read(&file, session)?, linked) {
            (Some(owner), _) => Ok(owner),
            (None, Err(source)) if is_no_links(&source) => {
                Err(VerdictError::NoLinks { dir: self.dir.clone(), source })
            }
            (None, Err(source)) => Err(VerdictError::Undecided { file, source }),
            (None, Ok(())) => Err(VerdictError::Undecided {
                file,
                source: io::Error::other("it vanished after it was made"),
            }),
        }
    }

    /// Whether a claim could be made now.
    pub(crate) fn probe(&self) -> Result<(), VerdictError> {
        let prefix = format!(".{}.probe", self.guest);
        let first = Temporary::write(&self.dir, &prefix, b"").map_err(|source| self.write_error(source))?;
        let second = Temporary { path: first.path.with_extension("link.tmp") };
        fs::hard_link(&first.path, &second.path).map_err(|source| {
            if is_no_links(&source) {
                VerdictError::NoLinks { dir: self.dir.clone(), source }
            } else {
                self.write_error(source)
            }
        })?;
        self.sync()
    }

    /// The owner, once a verdict is there; on stable storage before it is believed.
    fn read(&self, file: &Path, session: SessionId) -> Result<Option<Side>, VerdictError> {
        let mut found = Vec::new();
        match File::open(file).and_then(|f| f.take(MAX_LEN).read_to_end(&mut found)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(VerdictError::Read { file: file.to_owned(), source }),
        }
        let owner = [Side::Primary, Side::Standby].into_iter().find(|&s| found == line(session, s));
        let owner = owner.ok_or_else(|| VerdictError::Corrupt {
            file: file.to_owned(),
            session,
            found: String::from_utf8_lossy(&found).into_owned(),
        })?;
        self.sync()?;
        Ok(Some(owner))
    }

    fn sync(&self) -> Result<(), VerdictError> {
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(|source| self.write_error(source))
    }

    fn write_error(&self, source: io::Error) -> VerdictError {
        let dir = self.dir.clone();
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => VerdictError::Missing { dir, source },
            _ => VerdictError::Write { dir, source },
        }
    }
}

/// The contents of a verdict.
pub(crate) fn line(session: SessionId, owner: Side) -> Vec<u8> {
    format!("{session} {}\n", owner.name()).into_bytes()
}

/// `link` on a file system that has no hard links.
fn is_no_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errnos = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS];
    error.raw_os_error().is_some_and(|e| errnos.iter().any(|n| n.raw_os_error() == e))
}

/// A file of a name nobody else uses, removed when dropped.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// On stable storage on return.
    fn write(dir: &Path, prefix: &str, contents: &[u8]) -> io::Result<Temporary> {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let path = dir.join(format!("{prefix}.{:016x}.tmp", u64::from_ne_bytes(random)));
        let mut file = File::create_new(&path)?;
        let made = Temporary { path };
        file.write_all(contents)?;
        file.sync_all()?;
        Ok(made)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::debug!(path = %self.path.display(), %error, "A temporary file stays behind, harmless");
        }
    }
}
