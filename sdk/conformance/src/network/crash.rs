//! A controller that dies of SIGKILL while it holds frames: this very test program, in a process of its own.
//!
//! ```text
//!  case                              child
//!    start ──────────────────────►   make, engage
//!    ◄───────────────── "holding"
//!    guest sends; "N" ───────────►   until N are held; seal(1)
//!    ◄────────────────── "sealed"
//!    SIGKILL ────────────────────►   (gone)
//! ```

use super::NetworkBench;
use super::desk::Desk;
use aventine_api::{Epoch, Host, PluginError, Side};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Tells the child its place.
const PLACE: &str = "AVENTINE_CONFORMANCE_PLACE";

struct Deaf;

impl Host for Deaf {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

/// The child's part, which [`network!`](crate::network!) makes a test of. Does nothing where no case has started it.
pub fn controller<B: NetworkBench>() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut buffer = B::make(&place, Side::Primary, Arc::new(Deaf));
    buffer.engage().expect("the child's buffer can be engaged");
    say("holding");
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("the case says how many frames");
    let frames = line.trim().parse::<u64>().expect("a number of frames");
    while buffer.stats().held_frames < frames {
        thread::sleep(Duration::from_millis(1));
    }
    buffer.seal(Epoch(1)).expect("the child's buffer can be sealed");
    say("sealed");
    // Whatever comes next, it is not this process that goes on.
    let _ = io::stdin().read_line(&mut line);
    std::process::abort();
}

fn say(word: &str) {
    let mut out = io::stdout();
    let said = writeln!(out, "\n{word}").and_then(|()| out.flush());
    said.expect("the case listens");
}

/// The case's part.
pub(super) struct Controller {
    child: Child,
    words: BufReader<ChildStdout>,
}

impl Controller {
    /// Starts the child at the bench's place, where nothing else runs.
    pub(super) fn start<B: NetworkBench>(desk: &Desk<B>, test: &str) -> Result<Controller, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let child = Command::new(program)
            .args(["--exact", "--nocapture", "--include-ignored", test])
            .env(PLACE, desk.bench.place())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| e.to_string())?;
        let words = BufReader::new(child.stdout.take().ok_or("the child has an output")?);
        let mut controller = Controller { child, words };
        controller.await_word("holding")?;
        Ok(controller)
    }

    /// Has it seal what it holds once that are so many frames.
    pub(super) fn seal(&mut self, frames: usize) -> Result<(), String> {
        let input = self.child.stdin.as_mut().ok_or("the child has an input")?;
        writeln!(input, "{frames}").map_err(|e| e.to_string())?;
        self.await_word("sealed")
    }

    fn await_word(&mut self, word: &str) -> Result<(), String> {
        for line in self.words.by_ref().lines() {
            if line.map_err(|e| e.to_string())?.trim() == word {
                return Ok(());
            }
        }
        Err(format!("the controller that was to crash ended by itself before it was {word}"))
    }
}

/// SIGKILL; on return the kernel has taken back all that was the child's.
impl Drop for Controller {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = killed {
            eprintln!("the controller could not be killed: {error}");
        }
    }
}
