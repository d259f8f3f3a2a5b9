//! A host that dies of SIGKILL in the middle of a claim: this very test program, in a process of its own.
//!
//! ```text
//!  case                              child
//!    start ──────────────────────►   claims session 0, 1, 2 …, and again from 0 on
//!    ◄────────── "owner 0 primary"
//!    ◄────────── "owner 1 standby"   …
//!    SIGKILL ────────────────────►   (gone, in a claim or between two)
//! ```

use super::ArbiterBench;
use super::desk::{Claimant, Desk, SIDES, session};
use crate::suite::test_name;
use aventine_api::Side;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// How many sessions there are.
pub(super) const SESSIONS: u32 = 40;

/// Tell the child its place and its side.
const PLACE: &str = "AVENTINE_CONFORMANCE_PLACE";
const SIDE: &str = "AVENTINE_CONFORMANCE_SIDE";

/// The child's part, which [`arbiter!`](crate::arbiter!) makes a test of. Does nothing where no case has started it.
pub fn claimant<B: ArbiterBench>() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let named = |name: String| SIDES.into_iter().find(|s| s.name() == name);
    let side = std::env::var(SIDE).ok().and_then(named).expect("the case says which side");
    let mut claimant = Claimant::new::<B>(&place, side);
    let mut out = io::stdout();
    for number in (0..SESSIONS).cycle() {
        let owner = claimant.owner(session(number)).expect("a verdict");
        let said = writeln!(out, "\nowner {number} {}", owner.name()).and_then(|()| out.flush());
        if said.is_err() {
            // The case has given up.
            return;
        }
    }
}

/// The case's part.
pub(super) struct Claiming {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Claiming {
    pub(super) fn start<B: ArbiterBench>(desk: &Desk<B>, side: Side) -> Result<Claiming, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let test = test_name(desk.module, "claimant_that_crashes");
        let child = Command::new(program)
            .args(["--exact", "--nocapture", "--include-ignored", &test])
            .env(PLACE, desk.bench.place())
            .env(SIDE, side.name())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| e.to_string())?;
        let lines = BufReader::new(child.stdout.take().ok_or("the child has an output")?).lines();
        Ok(Claiming { child, lines })
    }

    /// What the child was told, by session. It dies once that has come to session `until`.
    pub(super) fn read_until(&mut self, until: u32) -> Result<Vec<(u32, Side)>, String> {
        let mut said = Vec::new();
        let mut is_killed = false;
        for line in self.lines.by_ref() {
            let line = line.map_err(|e| e.to_string())?;
            let Some((number, owner)) = line.strip_prefix("owner ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let owner = SIDES.into_iter().find(|s| s.name() == owner).ok_or("the child names a side")?;
            let number = number.parse().map_err(|_| "the child names a session")?;
            said.push((number, owner));
            if number >= until && !is_killed {
                self.child.kill().map_err(|e| e.to_string())?;
                is_killed = true;
            }
        }
        if !is_killed {
            return Err(format!("the host that was to crash ended by itself, after {} verdicts", said.len()));
        }
        Ok(said)
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = killed {
            eprintln!("the host that was to crash could not be killed: {error}");
        }
    }
}
