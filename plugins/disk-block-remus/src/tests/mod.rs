//! Both sides of a disk in one process, joined by a channel in memory, on real image files: what the rules of disks
//! (`tests/conformance.rs`) do not ask of every plugin.

mod faults;
pub(crate) mod power;
mod primary;
mod resync;
mod set_up;
mod standby;
mod verify;

use crate::BlockRemus;
use crate::config::{Durable, Settings};
use aventine_api::{
    BlockDevice, Context, Disk, Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx, RecordTx, Side,
};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for any machine; reached only when something is broken.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
enum Event {
    EpochWanted,
    Staged(u64),
    Failed(ErrorCode, String),
}

struct TestHost(Mutex<Sender<Event>>);

impl TestHost {
    fn say(&self, event: Event) {
        // A test that does not listen any more does not care.
        let _ = self.0.lock().unwrap().send(event);
    }
}

impl Host for TestHost {
    fn request_epoch(&self) {
        self.say(Event::EpochWanted);
    }

    fn staged(&self, epoch: Epoch) {
        self.say(Event::Staged(epoch.0));
    }

    fn failed(&self, error: PluginError) {
        self.say(Event::Failed(error.code(), error.chain()));
    }
}

/// What the two ends of a channel share.
#[derive(Default)]
struct Wire {
    state: Mutex<WireState>,
    changed: Condvar,
}

#[derive(Default)]
struct WireState {
    records: VecDeque<(RecordHead, Vec<u8>)>,
    /// On the way back.
    back: VecDeque<(RecordHead, Vec<u8>)>,
    /// Records that `send` may put before it waits for the other end.
    capacity: usize,
    /// Whether the other end gets anything.
    held: bool,
    cut: bool,
    /// Changes what is sent.
    damage: Option<fn(&mut RecordHead, &mut Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
#[error("The test cut the channel")]
struct Cut;

fn lost() -> PluginError {
    PluginError::new(ErrorCode::PeerLost, Cut)
}

impl Wire {
    fn change(&self, f: impl FnOnce(&mut WireState)) {
        f(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Both ends fail from now on; what is under way is lost.
    fn cut(&self) {
        self.change(|s| {
            s.cut = true;
            s.records.clear();
            s.back.clear();
        });
    }

    fn wait(&self, until: impl Fn(&WireState) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self.changed.wait_timeout_while(state, LIMIT, |s| !until(s)).unwrap();
        assert!(!timeout.timed_out());
    }
}

struct End(Arc<Wire>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.change(|s| s.cut |= s.records.is_empty());
    }
}

impl RecordTx for End {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let (mut head, mut payload) = (head, parts.concat());
        assert!(payload.len() <= aventine_api::MAX_RECORD);
        let state = self.0.state.lock().unwrap();
        let full = |s: &mut WireState| !s.cut && s.records.len() >= s.capacity;
        let mut state = self.0.changed.wait_while(state, full).unwrap();
        if state.cut {
            return Err(lost());
        }
        if let Some(damage) = state.damage {
            damage(&mut head, &mut payload);
        }
        state.records.push_back((head, payload));
        self.0.changed.notify_all();
        Ok(())
    }
}

impl RecordRx for End {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let state = self.0.state.lock().unwrap();
        let empty = |s: &mut WireState| !s.cut && (s.held || s.records.is_empty());
        let mut state = self.0.changed.wait_while(state, empty).unwrap();
        let (head, bytes) = state.records.pop_front().ok_or_else(lost)?;
        self.0.changed.notify_all();
        *payload = bytes;
        Ok(head)
    }
}

/// Either end of the way back.
struct Back(Arc<Wire>);

impl RecordTx for Back {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut state = self.0.state.lock().unwrap();
        if state.cut {
            return Err(lost());
        }
        state.back.push_back((head, parts.concat()));
        self.0.changed.notify_all();
        Ok(())
    }
}

impl RecordRx for Back {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let state = self.0.state.lock().unwrap();
        let mut state = self.0.changed.wait_while(state, |s| !s.cut && s.back.is_empty()).unwrap();
        let (head, bytes) = state.back.pop_front().ok_or_else(lost)?;
        *payload = bytes;
        Ok(head)
    }
}

/// One side of a disk.
struct Half {
    disk: BlockRemus,
    events: Receiver<Event>,
}

impl Half {
    fn open(dir: &Path, side: Side, image: &str, buffer: usize) -> Result<Half, PluginError> {
        let (tx, events) = channel();
        let context = Context {
            guest: "web".to_owned(),
            id: "disk0".to_owned(),
            side,
            state_dir: dir.to_owned(),
            config_dir: dir.to_owned(),
            host: Arc::new(TestHost(Mutex::new(tx))),
        };
        let (image, durable) = (PathBuf::from(image), Durable::Flush);
        let settings = Settings { image, route: None, buffer, direct: true, durable, accept_outdated: None };
        Half::with(settings, context, events)
    }

    fn with(settings: Settings, context: Context, events: Receiver<Event>) -> Result<Half, PluginError> {
        let mut disk = BlockRemus::new(settings, context)?;
        // A point is due at once, so that no test waits for it.
        disk.interval = Duration::ZERO;
        Ok(Half { disk, events })
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).expect("the plugin reports something")
    }

    fn assert_silent(&self) {
        assert_eq!(self.events.try_iter().collect::<Vec<_>>(), []);
    }

    fn read_all(&self) -> Vec<u8> {
        let block = self.disk.block();
        let mut bytes = vec![0; block.size() as usize];
        block.read(0, &mut bytes).unwrap();
        bytes
    }
}

fn connect(primary: &mut Half, standby: &mut Half, wire: &Arc<Wire>) {
    let (tx, rx) = (Box::new(End(wire.clone())), Box::new(End(wire.clone())));
    primary.disk.replicate(tx, Some(Box::new(Back(wire.clone())))).unwrap();
    standby.disk.receive(rx, Box::new(Back(wire.clone()))).unwrap();
}

/// Both sides.
struct Pair {
    primary: Half,
    standby: Half,
    wire: Arc<Wire>,
    block: Arc<dyn BlockDevice>,
    dir: TempDir,
}

const PRIMARY: &str = "primary.img";
const STANDBY: &str = "standby.img";

impl Pair {
    /// A primary with `contents`, and a standby that is being sent them.
    fn copying(contents: &[u8], buffer: usize) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PRIMARY), contents).unwrap();
        Pair::copying_in(dir, buffer)
    }

    fn copying_in(dir: TempDir, buffer: usize) -> Pair {
        let primary = Half::open(dir.path(), Side::Primary, PRIMARY, buffer).unwrap();
        let standby = Half::open(dir.path(), Side::Standby, STANDBY, buffer).unwrap();
        let wire = Arc::new(Wire::default());
        wire.change(|s| s.capacity = 4);
        let block = primary.disk.block();
        let mut pair = Pair { primary, standby, wire, block, dir };
        connect(&mut pair.primary, &mut pair.standby, &pair.wire);
        pair
    }

    /// The same, with the initial copy sent and the first epoch committed and applied.
    fn armed(contents: &[u8], buffer: usize) -> Pair {
        let mut pair = Pair::copying(contents, buffer);
        pair.finish_copy();
        pair.epoch(1);
        pair
    }

    fn finish_copy(&self) {
        let start = Instant::now();
        loop {
            let progress = self.primary.disk.progress();
            assert_eq!(progress.total, self.block.size());
            if progress.done == progress.total {
                return;
            }
            assert!(start.elapsed() < LIMIT, "the copy stands at {progress:?}");
            std::thread::yield_now();
        }
    }

    fn seal(&mut self, epoch: u64) {
        self.primary.disk.pausing();
        self.primary.disk.seal(Epoch(epoch)).unwrap();
    }

    /// Waits until the standby has said that it holds `epoch`.
    fn await_staged(&self, epoch: u64) {
        assert_eq!(self.standby.event(), Event::Staged(epoch));
    }

    fn commit(&mut self, epoch: u64) {
        self.standby.disk.commit(Epoch(epoch)).unwrap();
        self.primary.disk.release(Epoch(epoch)).unwrap();
    }

    /// A whole epoch.
    fn epoch(&mut self, epoch: u64) {
        self.seal(epoch);
        self.await_staged(epoch);
        self.commit(epoch);
        self.standby.disk.apply(Epoch(epoch)).unwrap();
    }

    /// Waits until both sides have the newest point in their metadata.
    fn await_point(&self) {
        let start = Instant::now();
        loop {
            let point = |half: &Half| half.disk.device.medium().unwrap().history.points().0;
            let (ours, theirs) = (point(&self.primary), point(&self.standby));
            if ours == theirs && ours.is_some() {
                return;
            }
            assert!(start.elapsed() < LIMIT, "the points stay {ours} and {theirs}");
            std::thread::yield_now();
        }
    }

    /// The epoch after the last one.
    fn next_epoch(&mut self) -> Epoch {
        let next = self.standby.disk.staging.as_ref().unwrap().staged().next();
        self.epoch(next.0);
        next
    }

    /// Moves from point to point until nothing is noted: every change is at one of them.
    fn await_quiet(&mut self) {
        let start = Instant::now();
        loop {
            let history = Arc::clone(&self.primary.disk.device.medium().unwrap().history);
            let quiet = history.points().0.is_some() && history.changed().ranges().is_empty();
            if quiet {
                return self.await_point();
            }
            assert!(start.elapsed() < LIMIT, "blocks stay noted");
            if history.is_pending() {
                std::thread::yield_now();
                continue;
            }
            self.next_epoch();
        }
    }

    fn image(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    fn assert_same(&self) {
        assert!(self.image(PRIMARY) == self.image(STANDBY), "the images differ");
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(167).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}
