//! Asking the arbiter: on a thread of its own, because it may take seconds, and once more after a crash.

use aventine_api::{Arbiter, PluginError, SessionId, Side, Verdict};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;
use tracing::{info, warn};

/// How long to wait before asking an arbiter again that gave no verdict.
const RETRY: Duration = Duration::from_millis(200);

/// What there is to ask.
enum Question {
    Claim(SessionId),
    Probe,
}

/// What the arbiter said.
pub(crate) enum Answer {
    /// On the claim of a session.
    Verdict(SessionId, Verdict),
    /// Whether it can be asked.
    Probed(Result<(), PluginError>),
}

/// Asks the arbiter for one side.
pub(crate) struct Claimant {
    questions: Sender<Question>,
}

impl Claimant {
    /// Starts the thread; `answer` gets a verdict for each claim, and the outcome of each probe. An arbiter that cannot
    /// be asked is undecided.
    pub(crate) fn start(
        mut arbiter: Box<dyn Arbiter>,
        side: Side,
        answer: impl Fn(Answer) + Send + 'static,
    ) -> Claimant {
        let (questions, asked) = channel();
        thread::spawn(move || {
            for question in asked {
                let Question::Claim(session) = question else {
                    answer(Answer::Probed(arbiter.probe()));
                    continue;
                };
                let verdict = arbiter.claim(session, side).unwrap_or_else(|error| {
                    warn!(error = error.chain(), "the arbiter cannot be asked; asking again");
                    Verdict::Undecided
                });
                if verdict == Verdict::Undecided {
                    thread::sleep(RETRY);
                } else {
                    info!(%session, ?verdict, "the arbiter has decided");
                }
                answer(Answer::Verdict(session, verdict));
            }
        });
        Claimant { questions }
    }

    /// Claims the guest of `session`; the verdict comes through `answer`.
    pub(crate) fn claim(&self, session: SessionId) {
        // The thread ends only when this end is dropped.
        let _ = self.questions.send(Question::Claim(session));
    }

    /// Asks whether the arbiter could be asked; the outcome comes through `answer`.
    pub(crate) fn probe(&self) {
        let _ = self.questions.send(Question::Probe);
    }
}

/// Why an earlier session could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The record could not be read or written.
    #[error("Cannot access {path}, which records who may own the guest")]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record is damaged.
    #[error("{path} does not hold a session id; if the guest runs nowhere else, remove the file")]
    Damaged {
        /// The record.
        path: PathBuf,
    },
    /// The standby has taken over.
    #[error(
        "The other host took this guest over (session {session}), so its disks and memory here are out of date. To \
         start it here all the same, make sure that it runs nowhere else and remove {path}"
    )]
    Taken {
        /// The session.
        session: SessionId,
        /// The record.
        path: PathBuf,
    },
    /// The arbiter waits for a person.
    #[error(
        "The arbiter has not decided yet who owns the guest (session {session}); decide, then start again"
    )]
    Undecided {
        /// The session.
        session: SessionId,
    },
    /// The arbiter could not be asked.
    #[error("Cannot ask the arbiter who owns the guest since this host lost it (session {session})")]
    Arbiter {
        /// The session.
        session: SessionId,
        /// Why.
        source: PluginError,
    },
}

/// The primary's record of the session that is open, on disk: a primary that comes back after a crash asks the
/// arbiter about it before it runs the guest again.
pub(crate) struct Record {
    path: PathBuf,
}

impl Record {
    pub(crate) fn open(state_dir: &Path) -> Record {
        Record { path: state_dir.join("session") }
    }

    /// Settles the session that a crash left open, if there is one: either this side owns the guest now, for ever,
    /// or the answer is an error.
    pub(crate) fn settle(&mut self, arbiter: &mut dyn Arbiter) -> Result<(), RecordError> {
        let Some(session) = self.session()? else { return Ok(()) };
        match arbiter.claim(session, Side::Primary) {
            Ok(Verdict::Won) => self.end(),
            Ok(Verdict::Lost) => Err(RecordError::Taken { session, path: self.path.clone() }),
            Ok(Verdict::Undecided) => Err(RecordError::Undecided { session }),
            Err(source) => Err(RecordError::Arbiter { session, source }),
        }
    }

    /// The session that is open, if one is.
    pub(crate) fn session(&self) -> Result<Option<SessionId>, RecordError> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { path: self.path.clone(), source }),
        };
        let damaged = || RecordError::Damaged { path: self.path.clone() };
        parse(text.trim()).ok_or_else(damaged).map(Some)
    }

    /// Records that `session` is open. On stable storage on return.
    pub(crate) fn begin(&mut self, session: SessionId) -> Result<(), RecordError> {
        let write = || {
            let new = self.path.with_extension("new");
            let mut file = File::create(&new)?;
            writeln!(file, "{session}")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        };
        write().map_err(|source| RecordError::Io { path: self.path.clone(), source })
    }

    /// Records that no session is open. Idempotent.
    pub(crate) fn end(&mut self) -> Result<(), RecordError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { path: self.path.clone(), source: e })
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn parse(hex: &str) -> Option<SessionId> {
    let mut id = [0; 16];
    // A number may have a sign, an id has none.
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(SessionId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Verdict);

    impl Arbiter for Says {
        fn claim(&mut self, _: SessionId, _: Side) -> Result<Verdict, PluginError> {
            Ok(self.0)
        }
        fn probe(&mut self) -> Result<(), PluginError> {
            Ok(())
        }
    }

    #[test]
    fn a_session_left_open_is_settled_before_the_guest_runs_again() {
        let dir = tempfile::tempdir().unwrap();
        let session = SessionId([0xa5; 16]);
        let mut record = Record::open(dir.path());
        record.settle(&mut Says(Verdict::Lost)).expect("nothing was open");
        record.begin(session).unwrap();
        let error = record.settle(&mut Says(Verdict::Lost)).unwrap_err();
        assert!(matches!(error, RecordError::Taken { session: s, .. } if s == session), "{error}");
        assert!(matches!(record.settle(&mut Says(Verdict::Undecided)), Err(RecordError::Undecided { .. })));
        record.settle(&mut Says(Verdict::Won)).unwrap();
        record.settle(&mut Says(Verdict::Lost)).expect("settled for good");
        for nonsense in [&b"nonsense"[..], b"+5+5+5+5+5+5+5+5+5+5+5+5+5+5+5+5", &[0xff; 32]] {
            fs::write(dir.path().join("session"), nonsense).unwrap();
            assert!(matches!(record.settle(&mut Says(Verdict::Won)), Err(RecordError::Damaged { .. })));
        }
    }
}
