//! Two hosts that die of SIGKILL in the middle of an epoch: this very test program, in a process of its own; or what the bench has
//! elsewhere.
//!
//! ```text
//!  case                                  child, at the bench's place
//!    start ──────────────────────────►   copy, epoch 1; epochs 2 and 3 staged, 4 open
//!                                        [committed, applying: commit 2]  [applying: apply 2]
//!    ◄──────────────────────── "there"
//!    SIGKILL ────────────────────────►   (gone)
//! ```

use super::DiskBench;
use super::desk::{Desk, Half, Seen, pattern, same, size};
use aventine_api::{Epoch, Side};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Child, Command, Stdio};

/// Tell the child its place and how far to go.
const PLACE: &str = "AVENTINE_CONFORMANCE_PLACE";
const STEP: &str = "AVENTINE_CONFORMANCE_STEP";
const STEPS: [&str; 3] = ["staged", "committed", "applying"];

/// What each epoch writes, apart from the others.
fn range(epoch: u64) -> Range<usize> {
    let at = epoch as usize * 200_000;
    at..at + 150_000
}

/// The child's part, which [`disk!`](crate::disk!) makes a test of. Does nothing where no case has started it.
pub fn hosts<B: DiskBench>() {
    let (Ok(place), Ok(step)) = (std::env::var(PLACE), std::env::var(STEP)) else { return };
    let crashed = run(B::at(&place), &step);
    panic!("the child was not killed: {crashed:?}");
}

fn run<B: DiskBench>(bench: B, step: &str) -> Seen {
    let mut desk = arrive(bench, step)?;
    let mut out = io::stdout();
    writeln!(out, "\nthere").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    if step == "applying" {
        desk.apply(2)?;
    }
    // Whatever comes next, it is not this process that goes on.
    let _ = io::stdin().read_line(&mut String::new());
    Ok(())
}

/// Goes as far as the step says.
fn arrive<B: DiskBench>(bench: B, step: &str) -> Result<Desk<B>, String> {
    let model = bench.image(Side::Primary);
    let mut desk = Desk::on(bench, model)?;
    desk.connect()?;
    desk.finish_copy()?;
    desk.epoch(1)?;
    for epoch in 2..=4 {
        let sent = desk.wire.sent();
        desk.write(range(epoch).start, &pattern(range(epoch).len(), epoch as u8), false)?;
        if epoch < 4 {
            desk.seal(epoch)?;
            desk.await_staged(epoch)?;
        } else {
            desk.wire.pass(sent, B::PATIENCE);
        }
    }
    if step != "staged" {
        desk.commit(2)?;
    }
    Ok(desk)
}

pub(super) fn a_crash_exposes_nothing<B: DiskBench>(module: &'static str) -> Seen {
    for step in STEPS {
        let contents = pattern(size::<B>(), 1);
        let bench = B::new(&contents, None);
        if B::FAR {
            let mut desk = arrive(B::at(&bench.place()), step)?;
            if step == "applying" {
                desk.apply(2)?;
            }
            bench.crash();
        } else {
            crash(&bench.place(), step, module)?;
        }
        let look = |when: &str| -> Seen {
            let image = bench.image(Side::Standby);
            for epoch in if step == "staged" { 2..=4 } else { 3..=4 } {
                let range = range(epoch);
                same(
                    &format!("what epoch {epoch} was to change"),
                    &image[range.clone()],
                    &contents[range],
                    when,
                )?;
            }
            Ok(())
        };
        look(&format!("after a crash ({step})"))?;
        let mut standby = Half::make(&bench, Side::Standby)?;
        let written = standby.writes();
        if !written.is_empty() {
            return Err(format!("after a crash ({step}) a standby's device carries out {written:?}"));
        }
        if standby.disk.activate(Epoch(3)).is_ok() {
            return Err(format!("after a crash ({step}) epoch 3 was activated, and was not committed"));
        }
        look(&format!("after a crash ({step}) and a restart of the standby"))?;
        drop(standby);
        let model = bench.image(Side::Primary);
        let mut desk = Desk::on(bench, model)?;
        desk.connect()?;
        desk.finish_copy()?;
        desk.epoch(1)?;
        desk.expect_equal(&format!("after a crash ({step}) and a new session"))?;
    }
    Ok(())
}

/// Runs the child at `place` to `step`, and kills it.
fn crash(place: &str, step: &str, module: &'static str) -> Seen {
    // libtest's names leave out the crate.
    let test = match module.split_once("::") {
        Some((_, modules)) => format!("{modules}::hosts_that_crash"),
        None => "hosts_that_crash".to_owned(),
    };
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let child = Command::new(program)
        .args(["--exact", "--nocapture", "--include-ignored", &test])
        .env(PLACE, place)
        .env(STEP, step)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Killed(child.map_err(|e| e.to_string())?);
    let words = BufReader::new(child.0.stdout.take().ok_or("the child has an output")?);
    let there = words.lines().map_while(Result::ok).any(|line| line == "there");
    if there { Ok(()) } else { Err(format!("the hosts that were to crash ({step}) ended by themselves")) }
}

/// SIGKILL; on return the kernel has taken back all that was the child's.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = killed {
            eprintln!("the hosts could not be killed: {error}");
        }
    }
}
