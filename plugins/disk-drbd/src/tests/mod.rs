//! Both sides of a disk in one process, joined by a channel in memory, on two files that stand for DRBD's devices.

mod model;
mod primary;
mod set_up;
mod standby;

use crate::Drbd;
use crate::config::Settings;
use crate::resource::{Resource, ResourceError};
use crate::state::{Connection, Contents, Quarrel, Role, State};
use aventine_api::{
    BlockDevice, Context, Disk, Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx, RecordTx, Side,
};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for any machine; reached only when something is broken.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const BUFFER: usize = 64 * MIB;

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

/// What stands for DRBD: whoever asks for the state while both sides are connected finds the Secondary's file made equal to
/// the Primary's, as after a write that has returned.
struct Twin {
    files: [PathBuf; 2],
    inner: Mutex<Inner>,
}

struct Inner {
    connection: Connection,
    roles: [Role; 2],
    contents: [Contents; 2],
    protocol: char,
    /// What became of a connection that was given up.
    quarrel: Option<Quarrel>,
    /// Whether the other side's role is still believed to be what it was.
    unnoticed: bool,
    /// What was asked for, in order.
    asked: Vec<String>,
}

impl Twin {
    fn new(dir: &Path, contents: &[u8]) -> Arc<Twin> {
        let files = ["primary.img", "standby.img"].map(|name| dir.join(name));
        files.iter().for_each(|path| fs::write(path, contents).unwrap());
        let inner = Inner {
            connection: Connection::Connected,
            roles: [Role::Secondary; 2],
            contents: [Contents::UpToDate; 2],
            protocol: 'C',
            quarrel: None,
            unnoticed: false,
            asked: Vec::new(),
        };
        Arc::new(Twin { files, inner: Mutex::new(inner) })
    }

    fn change(&self, f: impl FnOnce(&mut Inner)) {
        f(&mut self.inner.lock().unwrap());
    }

    fn connect(&self, connection: Connection) {
        self.change(|inner| inner.connection = connection);
    }

    /// What of the first side's writes the other may have when a link breaks: any of them.
    fn tear(&self, blocks: impl Iterator<Item = bool>) {
        let from = fs::read(&self.files[0]).unwrap();
        let to = File::options().write(true).open(&self.files[1]).unwrap();
        for (block, there) in (0..from.len()).step_by(4096).zip(blocks) {
            if there {
                to.write_all_at(&from[block..from.len().min(block + 4096)], block as u64).unwrap();
            }
        }
    }

    fn file(&self, side: usize) -> Vec<u8> {
        fs::read(&self.files[side]).unwrap()
    }
}

struct TestResource {
    twin: Arc<Twin>,
    side: usize,
}

impl TestResource {
    fn ask(&self, what: &str) -> std::sync::MutexGuard<'_, Inner> {
        let mut inner = self.twin.inner.lock().unwrap();
        inner.asked.push(format!("{} {what}", self.side));
        inner
    }

    fn refuse(what: &str) -> Result<(), ResourceError> {
        Err(ResourceError::Command { command: what.to_owned(), said: "the test refuses".to_owned() })
    }
}

impl Resource for TestResource {
    fn name(&self) -> &str {
        "r0"
    }

    fn device(&self) -> &Path {
        &self.twin.files[self.side]
    }

    fn size(&self) -> Option<u64> {
        Some(fs::metadata(self.device()).unwrap().len())
    }

    fn state(&self) -> Result<State, ResourceError> {
        let inner = self.twin.inner.lock().unwrap();
        let connected = inner.connection == Connection::Connected;
        if connected && let Some(from) = inner.roles.iter().position(|role| *role == Role::Primary) {
            let contents = self.twin.file(from);
            let to = File::options().write(true).open(&self.twin.files[1 - from]).unwrap();
            to.write_all_at(&contents, 0).unwrap();
        }
        let known = |theirs, unknown| if connected || inner.unnoticed { theirs } else { unknown };
        Ok(State {
            connection: inner.connection,
            word: format!("{:?}", inner.connection),
            role: inner.roles[self.side],
            peer: known(inner.roles[1 - self.side], Role::Unknown),
            contents: inner.contents[self.side],
            peer_contents: if connected || inner.connection == Connection::Resyncing {
                inner.contents[1 - self.side]
            } else {
                Contents::Unknown
            },
            protocol: inner.protocol,
            differ: 0,
        })
    }

    fn promote(&self, force: bool) -> Result<(), ResourceError> {
        let mut inner = self.ask(if force { "primary --force" } else { "primary" });
        let other = inner.roles[1 - self.side] == Role::Primary;
        let trusted = force || inner.contents[self.side] == Contents::UpToDate;
        if !trusted || (other && (inner.connection == Connection::Connected || inner.unnoticed)) {
            return TestResource::refuse("primary");
        }
        inner.roles[self.side] = Role::Primary;
        Ok(())
    }

    fn demote(&self) -> Result<(), ResourceError> {
        self.ask("secondary").roles[self.side] = Role::Secondary;
        Ok(())
    }

    fn speak(&self, letter: char) -> Result<(), ResourceError> {
        self.ask(&format!("protocol {letter}")).protocol = letter;
        Ok(())
    }

    fn disconnect(&self) -> Result<(), ResourceError> {
        let mut inner = self.ask("disconnect");
        inner.connection = Connection::StandAlone;
        inner.unnoticed = false;
        Ok(())
    }

    fn connect(&self) -> Result<(), ResourceError> {
        self.ask("connect").connection = Connection::Connected;
        Ok(())
    }

    fn quarrel(&self) -> Option<Quarrel> {
        self.twin.inner.lock().unwrap().quarrel
    }
}

#[derive(Debug, thiserror::Error)]
#[error("The test cut the channel")]
struct Cut;

fn lost() -> PluginError {
    PluginError::new(ErrorCode::PeerLost, Cut)
}

type Record = (RecordHead, Vec<u8>);

struct Tx(SyncSender<Record>);
struct Rx(Receiver<Record>);

impl RecordTx for Tx {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let payload = parts.concat();
        assert!(payload.len() <= aventine_api::MAX_RECORD);
        self.0.send((head, payload)).map_err(|_| lost())
    }
}

impl RecordRx for Rx {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let (head, bytes) = self.0.recv().map_err(|_| lost())?;
        *payload = bytes;
        Ok(head)
    }
}

/// One side of a disk.
struct Half {
    disk: Drbd,
    events: Receiver<Event>,
}

impl Half {
    fn open(dir: &Path, twin: &Arc<Twin>, side: Side, buffer: usize) -> Result<Half, PluginError> {
        let [resource, peer_resource] = ["r0", "r0"].map(str::to_owned);
        Half::of(&Settings { resource, peer_resource, buffer }, dir, twin, side)
    }

    fn of(settings: &Settings, dir: &Path, twin: &Arc<Twin>, side: Side) -> Result<Half, PluginError> {
        let (tx, events) = channel();
        let context = Context {
            guest: "web".to_owned(),
            id: "disk0".to_owned(),
            side,
            state_dir: dir.to_owned(),
            config_dir: dir.to_owned(),
            host: Arc::new(TestHost(Mutex::new(tx))),
        };
        let resource = TestResource { twin: Arc::clone(twin), side: usize::from(side == Side::Standby) };
        Drbd::new(settings, Arc::new(resource), context).map(|disk| Half { disk, events })
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).expect("the plugin reports something")
    }

    fn read_all(&self) -> Vec<u8> {
        let block = self.disk.block();
        let mut bytes = vec![0; block.size() as usize];
        block.read(0, &mut bytes).unwrap();
        bytes
    }
}

/// Both sides.
struct Pair {
    primary: Half,
    standby: Half,
    twin: Arc<Twin>,
    block: Arc<dyn BlockDevice>,
    dir: TempDir,
}

impl Pair {
    /// Both sides with `contents`, and the first epoch not begun.
    fn joined(contents: &[u8], buffer: usize) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let twin = Twin::new(dir.path(), contents);
        let primary = Half::open(dir.path(), &twin, Side::Primary, buffer).unwrap();
        let standby = Half::open(dir.path(), &twin, Side::Standby, buffer).unwrap();
        let block = primary.disk.block();
        let mut pair = Pair { primary, standby, twin, block, dir };
        pair.join();
        pair
    }

    fn join(&mut self) {
        let (tx, rx) = sync_channel(4);
        self.primary.disk.replicate(Box::new(Tx(tx)), None).unwrap();
        self.standby.disk.receive(Box::new(Rx(rx)), Box::new(Tx(sync_channel(4).0))).unwrap();
    }

    /// The same, with the first epoch committed.
    fn armed(contents: &[u8]) -> Pair {
        let mut pair = Pair::joined(contents, BUFFER);
        pair.await_ready();
        pair.epoch(1);
        pair
    }

    fn await_ready(&self) {
        await_that(|| {
            let progress = self.primary.disk.progress();
            assert_eq!(progress.total, self.block.size());
            progress.done == progress.total
        });
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
        await_that(|| match self.primary.disk.release(Epoch(epoch)) {
            Err(error) if error.code() == ErrorCode::TimedOut => false,
            released => released.map(|()| true).unwrap(),
        });
    }

    /// A whole epoch.
    fn epoch(&mut self, epoch: u64) {
        self.seal(epoch);
        self.await_staged(epoch);
        self.commit(epoch);
    }

    /// Waits until the standby keeps nothing any more.
    fn await_both(&self) {
        await_that(|| self.standby.disk.stats().buffered_bytes == 0);
    }

    fn asked(&self) -> Vec<String> {
        self.twin.inner.lock().unwrap().asked.clone()
    }
}

fn await_that(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "it does not come");
        std::thread::yield_now();
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(167).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}
