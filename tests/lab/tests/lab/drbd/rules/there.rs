//! On a lab host: the plugin's disk, which does what it is called for.

use super::call::{Answer, Call, Peer, done, error};
use super::verbs::*;
use aventine_api::{
    BlockDevice, Context, Disengage, Disk, Epoch, ErrorCode, Factory, Host, PluginEntry, PluginError,
    Premises, RecordHead, RecordRx, RecordTx, Side,
};
use std::fs::File;
use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

const KEYS: &str = "resource = 'r0'\nbuffer = '64MiB'";

/// Says what the plugin reports.
struct Says(Arc<Peer>);

impl Host for Says {
    fn request_epoch(&self) {
        let _ = self.0.call(REQUEST_EPOCH, [0; 3], &[]);
    }

    fn staged(&self, epoch: Epoch) {
        let _ = self.0.call(STAGED, [epoch.0, 0, 0], &[]);
    }

    fn failed(&self, error: PluginError) {
        let _ = self.0.call(LOST, [error.code() as u64, 0, 0], error.chain().as_bytes());
    }
}

/// The suite's channel of this number.
struct Channel(Arc<Peer>, u64);

impl RecordTx for Channel {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.0.call(SEND, [self.1, head.epoch.0, u64::from(head.kind)], &parts.concat()).map(drop)
    }
}

impl RecordRx for Channel {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let Call { args, bytes, .. } = self.0.call(TAKE, [self.1, 0, 0], &[])?;
        *payload = bytes;
        Ok(RecordHead { epoch: Epoch(args[0]), kind: args[1] as u8 })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = self.0.call(LET_GO, [self.1, 0, 0], &[]);
    }
}

/// The disk, and its device for calls that do not wait for the disk's.
#[derive(Default)]
struct Held {
    disk: Mutex<Option<Box<dyn Disk>>>,
    block: Mutex<Option<Arc<dyn BlockDevice>>>,
}

/// Until the suite is gone.
pub(super) fn serve(entry: &'static PluginEntry) {
    let premises = Premises { guest: "rules".into(), id: "disk0".into(), config_dir: "/run".into() };
    // As whoever starts after a crash does.
    (entry.upkeep.unwrap().reclaim)(KEYS, &premises).unwrap_or_else(|e| panic!("{}", e.chain()));
    // On a line of its own, behind what the test runner says.
    println!("\npid {} here", std::process::id());
    let out = File::from(stdout().as_fd().try_clone_to_owned().unwrap());
    let input = File::from(stdin().as_fd().try_clone_to_owned().unwrap());
    let peer = Peer::new(out);
    let (held, own) = (Held::default(), Arc::clone(&peer));
    peer.serve(input, move |call| held.act(entry, &own, &call));
}

impl Held {
    fn act(&self, entry: &PluginEntry, peer: &Arc<Peer>, call: &Call) -> Answer {
        match call.verb {
            MAKE => self.make(entry, peer, call.args[0]),
            DROP => {
                let (disk, block) = (self.disk().take(), self.block.lock().unwrap().take());
                drop((disk, block));
                done()
            }
            SIZE..=FLUSH => self.on_block(call),
            _ => self.on_disk(peer, call),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Option<Box<dyn Disk>>> {
        self.disk.lock().unwrap()
    }

    fn make(&self, entry: &PluginEntry, peer: &Arc<Peer>, side: u64) -> Answer {
        let Factory::Disk(make) = entry.factory else { panic!("a disk") };
        let side = if side == 0 { Side::Primary } else { Side::Standby };
        let disk = make(
            KEYS,
            Context {
                guest: "rules".into(),
                id: "disk0".into(),
                side,
                state_dir: "/run".into(),
                config_dir: "/run".into(),
                host: Arc::new(Says(Arc::clone(peer))),
            },
        )?;
        let depth = u64::from(disk.depth());
        *self.block.lock().unwrap() = Some(disk.block());
        *self.disk() = Some(disk);
        Ok(Call { args: [depth, 0, 0], ..Call::default() })
    }

    fn on_block(&self, call: &Call) -> Answer {
        let block = self.block.lock().unwrap().clone();
        let block = block.ok_or_else(|| error(ErrorCode::Internal as u64, b"There is no disk"))?;
        let [offset, len, _] = call.args;
        match call.verb {
            SIZE => return Ok(Call { args: [block.size(), 0, 0], ..Call::default() }),
            READ => {
                let mut bytes = vec![0; len as usize];
                block.read(offset, &mut bytes)?;
                return Ok(Call { bytes, ..Call::default() });
            }
            WRITE => block.write(offset, &call.bytes, len != 0)?,
            ZERO => block.write_zeroes(offset, len, call.args[2] & 1 != 0, call.args[2] & 2 != 0)?,
            TRIM => block.trim(offset, len)?,
            _ => block.flush()?,
        }
        done()
    }

    fn on_disk(&self, peer: &Arc<Peer>, call: &Call) -> Answer {
        let mut disk = self.disk();
        let disk = disk.as_mut().ok_or_else(|| error(ErrorCode::Internal as u64, b"There is no disk"))?;
        let [first, second, _] = call.args;
        let channel = |number| Box::new(Channel(Arc::clone(peer), number));
        match call.verb {
            REPLICATE => {
                let back = (second != 0).then(|| channel(second) as Box<dyn RecordRx>);
                disk.replicate(channel(first), back)?;
            }
            RECEIVE => disk.receive(channel(first), channel(second))?,
            PROGRESS => {
                let progress = disk.progress();
                return Ok(Call { args: [progress.done, progress.total, 0], ..Call::default() });
            }
            PAUSING => disk.pausing(),
            SEAL => disk.seal(Epoch(first))?,
            RELEASE => disk.release(Epoch(first))?,
            DISENGAGE => disk.disengage(if first == 0 { Disengage::Owner } else { Disengage::NotOwner })?,
            COMMIT => disk.commit(Epoch(first))?,
            APPLY => disk.apply(Epoch(first))?,
            ACTIVATE => disk.activate(Epoch(first))?,
            STATS => {
                let stats = disk.stats();
                let args = [stats.written_bytes, stats.replicated_bytes, stats.buffered_bytes];
                return Ok(Call { args, ..Call::default() });
            }
            verb => return Err(error(ErrorCode::Internal as u64, format!("No verb {verb}").as_bytes())),
        }
        done()
    }
}
