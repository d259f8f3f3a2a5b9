//! The file a person writes.

use aventine_api::{SessionId, Side};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::PathBuf;

/// More than a person ever decides, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// Why the decisions cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("The decision cannot be written to {}, because its directory is missing; create it", .file.display())]
    NoDirectory { file: PathBuf },
    #[error("Could not read {}", .file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error(
        "Line {line} of {} is no decision: {found:?}; it must be a session id and `primary` or `standby`",
        .file.display()
    )]
    Line { file: PathBuf, line: usize, found: String },
    #[error(
        "{} says both primary and standby for session {session}; find out which guest was ever heard, and delete the \
         other line", .file.display()
    )]
    Contradiction { file: PathBuf, session: SessionId },
    #[error("{} has more than {MAX_LEN} bytes; it is to hold decisions only", .file.display())]
    TooLong { file: PathBuf },
}

/// All decisions ever made on this host.
pub(crate) struct Decisions {
    pub(crate) file: PathBuf,
}

impl Decisions {
    /// Who owns the guest of `session`, if that is decided.
    pub(crate) fn owner(&self, session: SessionId) -> Result<Option<Side>, ReadError> {
        let file = || self.file.clone();
        let mut bytes = Vec::new();
        match File::open(&self.file).and_then(|f| f.take(MAX_LEN + 1).read_to_end(&mut bytes)) {
            Ok(len) if len as u64 > MAX_LEN => return Err(ReadError::TooLong { file: file() }),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError::Io { file: file(), source }),
        }
        self.find(&bytes, session)
    }

    /// What the file's contents say about `session`.
    pub(crate) fn find(&self, contents: &[u8], session: SessionId) -> Result<Option<Side>, ReadError> {
        let file = || self.file.clone();
        let wanted = session.to_string();
        let mut owner = None;
        for (number, text) in (1..).zip(String::from_utf8_lossy(contents).lines()) {
            if text.trim().is_empty() {
                continue;
            }
            let (id, side) = parse_line(text).ok_or_else(|| ReadError::Line {
                file: file(),
                line: number,
                found: text.chars().take(80).collect(),
            })?;
            if !id.eq_ignore_ascii_case(&wanted) {
                continue;
            }
            if owner.replace(side).is_some_and(|before| before != side) {
                return Err(ReadError::Contradiction { file: file(), session });
            }
        }
        Ok(owner)
    }

    /// Whether a decision could be made and read.
    pub(crate) fn probe(&self) -> Result<(), ReadError> {
        if !self.file.parent().is_some_and(std::path::Path::is_dir) {
            return Err(ReadError::NoDirectory { file: self.file.clone() });
        }
        // No session has this id: what matters is that every line can be read.
        self.owner(SessionId([0; 16])).map(drop)
    }

    /// The line for a shell that decides `session` for `owner`.
    pub(crate) fn command(&self, session: SessionId, owner: Side) -> String {
        let file = self.file.display().to_string().replace('\'', r"'\''");
        format!("echo {session} {} >> '{file}'", owner.name())
    }
}

/// `SESSION primary` or `SESSION standby`.
fn parse_line(text: &str) -> Option<(&str, Side)> {
    let mut words = text.split_whitespace();
    let id = words.next().filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let side = words.next()?;
    let side = [Side::Primary, Side::Standby].into_iter().find(|s| s.name() == side)?;
    words.next().is_none().then_some((id, side))
}
