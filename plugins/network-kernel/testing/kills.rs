//! A thousand epochs, and a controller that is killed again and again: what does the far side of the wire see?
//!
//! ```text
//!  test                                   controller, a process of its own
//!    frames of every protocol ─► guest0      engage
//!    "seal N"     ─────────────────────►     until they are held; seal(N); "sealed"
//!    "release N", as if acknowledged ──►     release(N); "released"
//!    SIGKILL, at any of these moments        (a new one takes its place, and counts its epochs from 1)
//!    world0 ─► captured
//! ```

use crate::bench::{Kind, Nobody, Taps, receive, until};
use aventine_api::{Epoch, Side};
use aventine_conformance::network::NetworkBench;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const EPOCHS: u32 = 1000;
/// Of a hundred epochs, how many their controller does not survive.
const KILLS: u64 = 4;
/// What stands between a frame's addresses and its payload.
const PROTOCOLS: [(&str, &[u8]); 5] = [
    ("IPv4", &[0x08, 0x00]),
    ("IPv6", &[0x86, 0xdd]),
    ("ARP", &[0x08, 0x06]),
    ("VLAN-tagged IPv4", &[0x81, 0x00, 0x00, 0x05, 0x08, 0x00]),
    ("VLAN-tagged IPv6", &[0x81, 0x00, 0x00, 0x06, 0x86, 0xdd]),
];
const MARK: &[u8] = b"aventine epoch";

fn frame(protocol: &[u8], epoch: u32) -> Vec<u8> {
    let addresses = [[0x52, 0x54, 0, 0xa7, 0xe0, 0x0d], [0x52, 0x54, 0, 0xa7, 0xe0, 0x0c]].concat();
    let mut frame = [&addresses[..], protocol, MARK, &epoch.to_be_bytes()].concat();
    frame.resize(60, 0);
    frame
}

/// The epoch of one of these frames.
fn epoch_of(frame: &[u8]) -> Option<u32> {
    let at = frame.windows(MARK.len()).position(|w| w == MARK)? + MARK.len();
    Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?))
}

/// The controller's part.
pub(crate) fn controller<K: Kind>() {
    let mut buffer = Taps::<K>::make("", Side::Primary, Arc::new(Nobody));
    buffer.engage().unwrap();
    say("holding");
    for line in io::stdin().lines().map_while(Result::ok) {
        let (verb, epoch) = line.split_once(' ').unwrap();
        let epoch = Epoch(epoch.parse().unwrap());
        if verb == "seal" {
            while buffer.stats().held_frames < PROTOCOLS.len() as u64 {
                thread::sleep(Duration::from_millis(1));
            }
            buffer.seal(epoch).unwrap();
            say("sealed");
        } else {
            buffer.release(epoch).unwrap();
            say("released");
        }
    }
    // Whoever goes on after this process's end, it is not this process.
    std::process::abort();
}

fn say(word: &str) {
    let mut out = io::stdout();
    writeln!(out, "\n{word}").and_then(|()| out.flush()).unwrap();
}

/// A controller that runs. Dropping it is its SIGKILL.
struct Controller {
    child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
    epoch: u64,
}

impl Controller {
    fn start() -> Controller {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--include-ignored", "controller_on_command"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, words) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut controller = Controller { child, orders, words, epoch: 0 };
        controller.hear("holding");
        controller
    }

    fn order(&mut self, verb: &str) {
        writeln!(self.orders, "{verb} {}", self.epoch).unwrap();
    }

    fn hear(&mut self, word: &str) {
        let mut lines = self.words.by_ref().lines().map_while(Result::ok);
        assert!(lines.any(|line| line == word), "the controller ended by itself before it was {word}");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).unwrap();
    }
}

/// What has come, and what may.
struct Capture {
    world: File,
    /// For each acknowledged epoch, how many frames have come.
    came: BTreeMap<u32, usize>,
}

impl Capture {
    fn look(&mut self) {
        while let Some(frame) = receive(&mut self.world) {
            let Some(epoch) = epoch_of(&frame) else { continue };
            let Some(came) = self.came.get_mut(&epoch) else {
                panic!("a frame of epoch {epoch}, which nobody has acknowledged: {frame:02x?}");
            };
            *came += 1;
        }
    }
}

/// The whole of it, in a lab host.
pub(crate) fn random_kills_let_nothing_out<K: Kind>() {
    let (mut guest, world) = crate::bench::bridged();
    let mut capture = Capture { world, came: BTreeMap::new() };
    let mut random = 1u64;
    let (mut running, mut killed) = (None::<Controller>, 0);
    for epoch in 1..=EPOCHS {
        let controller = running.get_or_insert_with(Controller::start);
        controller.epoch += 1;
        PROTOCOLS.iter().for_each(|(_, protocol)| guest.write_all(&frame(protocol, epoch)).unwrap());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (dies, moment) = ((random >> 33) % 100 < KILLS, (random >> 40) % 3);
        if !(dies && moment == 0) {
            controller.order("seal");
            controller.hear("sealed");
            capture.look();
        }
        if !dies || moment == 2 {
            capture.came.insert(epoch, 0);
            controller.order("release");
        }
        if dies {
            (running, killed) = (None, killed + 1);
            capture.look();
            continue;
        }
        controller.hear("released");
        until("what was acknowledged has come", || {
            capture.look();
            capture.came[&epoch] == PROTOCOLS.len()
        });
    }
    drop(running);
    capture.look();
    let (epochs, frames) = (capture.came.len(), capture.came.values().sum::<usize>());
    println!(
        "{EPOCHS} epochs, {killed} controllers killed, {frames} frames of {epochs} acknowledged epochs came"
    );
    assert!(killed > EPOCHS as u64 * KILLS / 200, "{killed} kills are too few to tell");
}
