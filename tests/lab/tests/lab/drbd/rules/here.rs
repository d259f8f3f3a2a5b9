//! In the suite's process: a disk whose verbs are calls.

use super::call::{Answer, Call, Peer, done, error};
use super::verbs::*;
use aventine_api::{
    BlockDevice, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Host, PluginError, RecordHead,
    RecordRx, RecordTx, Side,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// An end of the suite's channel. Taken out while it is in use: it may wait.
enum Channel {
    Tx(Box<dyn RecordTx>),
    Rx(Box<dyn RecordRx>),
}

/// What the disk on the other side reaches here.
#[derive(Default)]
pub(super) struct Reached {
    host: Mutex<Option<Arc<dyn Host>>>,
    channels: Mutex<HashMap<u64, Arc<Mutex<Channel>>>>,
    last: Mutex<u64>,
}

impl Reached {
    pub(super) fn act(&self, call: &Call) -> Answer {
        let [first, epoch, kind] = call.args;
        let host = self.host.lock().unwrap().clone();
        let channel = || self.channels.lock().unwrap().get(&first).cloned();
        match (call.verb, host) {
            (REQUEST_EPOCH, Some(host)) => host.request_epoch(),
            (STAGED, Some(host)) => host.staged(Epoch(first)),
            (LOST, Some(host)) => host.failed(error(first, &call.bytes)),
            (SEND | TAKE, _) => {
                let channel = channel().ok_or_else(|| error(ErrorCode::PeerLost as u64, b"No channel"))?;
                return match &mut *channel.lock().unwrap() {
                    Channel::Tx(tx) => {
                        let head = RecordHead { epoch: Epoch(epoch), kind: kind as u8 };
                        tx.send(head, &[&call.bytes]).and_then(|()| done())
                    }
                    Channel::Rx(rx) => {
                        let mut bytes = Vec::new();
                        let head = rx.recv(&mut bytes)?;
                        Ok(Call { args: [head.epoch.0, u64::from(head.kind), 0], bytes, ..Call::default() })
                    }
                };
            }
            (LET_GO, _) => drop(self.channels.lock().unwrap().remove(&first)),
            _ => {}
        }
        done()
    }

    fn add(&self, channel: Channel) -> u64 {
        let mut last = self.last.lock().unwrap();
        *last += 1;
        self.channels.lock().unwrap().insert(*last, Arc::new(Mutex::new(channel)));
        *last
    }
}

/// A disk on a lab host.
pub(super) struct Far {
    peer: Arc<Peer>,
    reached: Arc<Reached>,
    depth: u32,
}

impl Far {
    pub(super) fn make(
        peer: Arc<Peer>,
        reached: Arc<Reached>,
        side: Side,
        host: Arc<dyn Host>,
    ) -> Result<Far, PluginError> {
        *reached.host.lock().unwrap() = Some(host);
        let made = peer.call(MAKE, [u64::from(side == Side::Standby), 0, 0], &[])?;
        Ok(Far { peer, reached, depth: made.args[0] as u32 })
    }

    fn tell(&self, verb: u8, first: u64) -> Result<(), PluginError> {
        self.peer.call(verb, [first, 0, 0], &[]).map(drop)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // The process that has it may be gone.
        let _ = self.tell(DROP, 0);
    }
}

impl Disk for Far {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn route(&self) -> Option<String> {
        None
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::new(FarBlock(Arc::clone(&self.peer)))
    }

    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError> {
        let tx = self.reached.add(Channel::Tx(tx));
        let back = back.map_or(0, |back| self.reached.add(Channel::Rx(back)));
        self.peer.call(REPLICATE, [tx, back, 0], &[]).map(drop)
    }

    fn progress(&self) -> DiskProgress {
        let [done, total, _] = self.peer.call(PROGRESS, [0; 3], &[]).map(|c| c.args).unwrap_or_default();
        DiskProgress { done, total }
    }

    fn pausing(&self) {
        let _ = self.tell(PAUSING, 0);
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.tell(SEAL, epoch.0)
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.tell(RELEASE, epoch.0)
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.tell(DISENGAGE, u64::from(why == Disengage::NotOwner))
    }

    fn receive(&mut self, rx: Box<dyn RecordRx>, back: Box<dyn RecordTx>) -> Result<(), PluginError> {
        let rx = self.reached.add(Channel::Rx(rx));
        let back = self.reached.add(Channel::Tx(back));
        self.peer.call(RECEIVE, [rx, back, 0], &[]).map(drop)
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.tell(COMMIT, epoch.0)
    }

    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.tell(APPLY, epoch.0)
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.tell(ACTIVATE, epoch.0)
    }

    fn stats(&self) -> DiskStats {
        let args = self.peer.call(STATS, [0; 3], &[]).map(|c| c.args).unwrap_or_default();
        let [written_bytes, replicated_bytes, buffered_bytes] = args;
        DiskStats { written_bytes, replicated_bytes, buffered_bytes }
    }
}

struct FarBlock(Arc<Peer>);

impl BlockDevice for FarBlock {
    fn size(&self) -> u64 {
        self.0.call(SIZE, [0; 3], &[]).map_or(0, |c| c.args[0])
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        let read = self.0.call(READ, [offset, buf.len() as u64, 0], &[])?;
        buf.copy_from_slice(&read.bytes);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        self.0.call(WRITE, [offset, u64::from(fua), 0], data).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        let flags = u64::from(may_unmap) | u64::from(fua) << 1;
        self.0.call(ZERO, [offset, len, flags], &[]).map(drop)
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.0.call(TRIM, [offset, len, 0], &[]).map(drop)
    }

    fn flush(&self) -> Result<(), PluginError> {
        self.0.call(FLUSH, [0; 3], &[]).map(drop)
    }
}
