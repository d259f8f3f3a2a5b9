//! Arbiters.

use crate::{Broken, HASTE, Why, expect_bites};
use aventine_api::{Arbiter, ErrorCode, PluginError, SessionId, Side, Verdict};
use aventine_conformance::arbiter::{ArbiterBench, rules};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// What is wrong with an arbiter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    TheLastClaimWins,
    ForgetsAfterTwentyQuestions,
    ForgetsAtARestart,
    ConfusesSessions,
    LooksThenWrites,
    KnowsProcessesNotSides,
    WaitsForSomebodyInSecret,
    DecidesForThePerson,
    ClaimsWithAProbe,
    WinsInSilence,
    IsStillInSilence,
    LosesAfterAnError,
    WritesLater,
}

/// The rule that each fault breaks.
const BROKEN: Broken<Fault, 13> = [
    (Fault::TheLastClaimWins, "the_first_claim_wins"),
    (Fault::ForgetsAfterTwentyQuestions, "a_verdict_stands"),
    (Fault::ForgetsAtARestart, "a_restart_forgets_nothing"),
    (Fault::ConfusesSessions, "sessions_are_apart"),
    (Fault::LooksThenWrites, "races_have_one_winner"),
    (Fault::KnowsProcessesNotSides, "the_only_side_never_loses"),
    (Fault::WaitsForSomebodyInSecret, "it_says_whether_it_waits_for_a_person"),
    (Fault::DecidesForThePerson, "it_says_whether_it_waits_for_a_person"),
    (Fault::ClaimsWithAProbe, "a_probe_claims_nothing"),
    (Fault::WinsInSilence, "silence_is_no_verdict"),
    (Fault::IsStillInSilence, "silence_is_no_verdict"),
    (Fault::LosesAfterAnError, "an_error_costs_nothing"),
    (Fault::WritesLater, "a_crash_changes_no_verdict"),
];

/// A directory with a file for each session, in which its owner stands.
struct Files {
    fault: Fault,
    dir: PathBuf,
    side: Side,
    number: u32,
    asked: u32,
    failed: bool,
    unwritten: HashMap<SessionId, Side>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Files {
    fn file(&self, session: SessionId) -> PathBuf {
        let name = session.to_string();
        self.dir.join(if self.fault == Fault::ConfusesSessions { &name[4..8] } else { &name })
    }

    /// What the winner writes.
    fn word(&self, side: Side) -> String {
        match self.fault {
            Fault::KnowsProcessesNotSides => self.number.to_string(),
            _ => side.name().to_owned(),
        }
    }

    /// The word of the first that came.
    fn first(&self, session: SessionId, side: Side) -> io::Result<String> {
        let (file, word) = (self.file(session), self.word(side));
        match self.fault {
            Fault::TheLastClaimWins => fs::write(&file, &word)?,
            Fault::LooksThenWrites if !file.exists() => {
                thread::sleep(Duration::from_millis(2));
                fs::write(&file, &word)?;
                return Ok(word);
            }
            _ => {}
        }
        let own = self.dir.join(format!("{}.{}", std::process::id(), self.number));
        fs::write(&own, &word)?;
        match fs::hard_link(&own, &file) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::remove_file(own)?;
        fs::read_to_string(file)
    }

    fn ask(&mut self, session: SessionId, side: Side) -> io::Result<Verdict> {
        self.asked += 1;
        match self.fault {
            Fault::WaitsForSomebodyInSecret => return Ok(Verdict::Undecided),
            Fault::LosesAfterAnError if std::mem::take(&mut self.failed) => return Ok(Verdict::Lost),
            Fault::ForgetsAfterTwentyQuestions if self.asked > 20 && self.file(session).exists() => {
                fs::remove_file(self.file(session))?;
            }
            Fault::WritesLater if !self.file(session).exists() => {
                return Ok(match *self.unwritten.entry(session).or_insert(side) {
                    owner if owner == side => Verdict::Won,
                    _ => Verdict::Lost,
                });
            }
            _ => {}
        }
        Ok(if self.first(session, side)? == self.word(side) { Verdict::Won } else { Verdict::Lost })
    }
}

impl Arbiter for Files {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        if self.fault == Fault::WinsInSilence && !self.dir.exists() {
            return Ok(Verdict::Won);
        }
        while self.fault == Fault::IsStillInSilence && !self.dir.exists() {
            thread::sleep(Duration::from_millis(2));
        }
        let answer = self.ask(session, side);
        self.failed |= answer.is_err();
        answer.map_err(|e| PluginError::new(ErrorCode::Io, e))
    }

    fn waits_for_person(&self) -> bool {
        self.fault == Fault::DecidesForThePerson
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        if self.fault == Fault::ClaimsWithAProbe {
            // The session that it is asked about next, in one case or another.
            for number in 0..4u8 {
                let mut id = [0x5a; 16];
                (id[0], id[15]) = (number, number);
                id[8..12].copy_from_slice(&u32::from(number).to_be_bytes());
                let _ = self.first(SessionId(id), self.side);
            }
        }
        if self.dir.exists() { Ok(()) } else { Err(PluginError::new(ErrorCode::Io, Why("no directory"))) }
    }
}

/// Long after its claims, as a cache does. A host that dies drops nothing.
impl Drop for Files {
    fn drop(&mut self) {
        for (session, owner) in std::mem::take(&mut self.unwritten) {
            let _ = self.first(session, owner);
        }
    }
}

thread_local! {
    /// What is wrong with the arbiters of the benches that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Desk<const HASTY: bool> {
    fault: Fault,
    dir: TempDir,
}

impl<const HASTY: bool> ArbiterBench for Desk<HASTY> {
    const PATIENCE: Duration = if HASTY { HASTE } else { Duration::from_secs(60) };

    fn start() -> Self {
        let desk = Desk { fault: FAULT.get(), dir: tempfile::tempdir().unwrap() };
        fs::create_dir(desk.dir.path().join("service")).unwrap();
        desk
    }

    fn place(&self) -> String {
        format!("{:?} {}", self.fault, self.dir.path().display())
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        let (fault, dir) = place.split_once(' ').unwrap();
        let named = BROKEN.into_iter().find(|(f, _)| format!("{f:?}") == fault);
        let (fault, dir) = (named.map_or(Fault::None, |b| b.0), Path::new(dir).join("service"));
        if fault == Fault::ForgetsAtARestart {
            fs::remove_dir_all(&dir).and_then(|()| fs::create_dir(&dir)).unwrap();
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Box::new(Files { fault, dir, side, number, asked: 0, failed: false, unwritten: HashMap::new() })
    }

    fn vanish(&mut self) {
        fs::rename(self.dir.path().join("service"), self.dir.path().join("away")).unwrap();
    }

    fn reappear(&mut self) {
        fs::rename(self.dir.path().join("away"), self.dir.path().join("service")).unwrap();
    }
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    expect_bites(
        [rules::<Desk<false>>(), rules::<Desk<true>>()],
        module_path!(),
        &BROKEN,
        Fault::None,
        &FAULT,
    );
}

#[test]
#[ignore = "started by the rule a_crash_changes_no_verdict"]
fn claimant_that_crashes() {
    aventine_conformance::arbiter::claimant::<Desk<false>>();
}
