//! A peer that dies of SIGKILL: this very test program, in a process of its own.
//!
//! ```text
//!  case                              child
//!    start ──────────────────────►   listens, says so, accepts; or connects
//!                                    opens `control`, sends a few bytes there, waits
//!    SIGKILL ────────────────────►   (gone)
//! ```

use super::TransportBench;
use super::desk::Desk;
use super::wire::bytes;
use crate::suite::test_name;
use aventine_api::Side;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// Tell the child its place and its side.
const PLACE: &str = "AVENTINE_CONFORMANCE_PLACE";
const SIDE: &str = "AVENTINE_CONFORMANCE_SIDE";
/// What the child says when it listens, or is about to connect.
const READY: &str = "ready";
/// The stream that the child sends, and how much of it.
pub(super) const STREAM: u32 = 77;
pub(super) const SAYS: usize = 1000;

/// The child's part, which [`transport!`](crate::transport!) makes a test of. Does nothing where no case has started it.
pub fn peer<B: TransportBench>() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let is_primary = std::env::var(SIDE).is_ok_and(|side| side == Side::Primary.name());
    let side = if is_primary { Side::Primary } else { Side::Standby };
    let mut transport = B::make(&place, side);
    let mut listener = None;
    if !is_primary {
        listener = Some(transport.listen(&[]).expect("the child can listen"));
    }
    say(READY);
    let mut link = match &mut listener {
        Some(listener) => {
            listener.accept(B::PATIENCE).expect("the child can accept").expect("the case connects")
        }
        None => transport.connect(B::PATIENCE).expect("the case listens"),
    };
    let (mut tx, _rx) = link.open("control", None, B::PATIENCE).expect("the case opens the channel");
    tx.send(&[&bytes(STREAM, 0, SAYS)]).expect("the case is there");
    // Whatever comes next, it is not this process that goes on.
    let _ = io::stdin().read_line(&mut String::new());
    std::process::abort();
}

fn say(word: &str) {
    let mut out = io::stdout();
    let said = writeln!(out, "\n{word}").and_then(|()| out.flush());
    said.expect("the case listens");
}

/// The case's part.
pub(super) struct Peer(Child);

impl Peer {
    /// Starts the child at the bench's place.
    pub(super) fn start<B: TransportBench>(desk: &Desk<B>, side: Side) -> Result<Peer, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let test = test_name(desk.module, "peer_that_crashes");
        let child = Command::new(program)
            .args(["--exact", "--nocapture", "--include-ignored", &test])
            .env(PLACE, desk.bench.place())
            .env(SIDE, side.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut peer = Peer(child.map_err(|e| e.to_string())?);
        let words = BufReader::new(peer.0.stdout.take().ok_or("the child has an output")?);
        for line in words.lines() {
            if line.map_err(|e| e.to_string())?.trim() == READY {
                return Ok(peer);
            }
        }
        Err("the peer that was to crash ended by itself".to_owned())
    }

    /// SIGKILL; on return the kernel has taken back all that was the child's.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        self.0.kill().and_then(|()| self.0.wait()).map(drop).map_err(|e| e.to_string())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("the peer that was to crash could not be killed: {error}");
        }
    }
}
