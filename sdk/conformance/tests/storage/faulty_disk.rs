//! A disk that keeps every rule but the one that its fault breaks.
//!
//! ```text
//!  Size    size u64
//!  Change  offset u64, length u64, data (none: zeroes)
//!  Copied
//!  Barrier sum u64 of all bytes since the last one, each with its place
//! ```

mod device;

use aventine_api::{
    BlockDevice, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Host, PluginError, RecordHead,
    RecordRx, RecordTx, Side,
};
use device::{Access, BARRIER, COPIED, Device, SIZE, State, Sum, error};
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

/// What is wrong with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    LosesOddBytes,
    TrimsNothing,
    ForgetsItsSize,
    CopiesWhatWasThere,
    SkipsZeroes,
    ClaimsTheCopy,
    FitsAnything,
    BeginsWithoutAPrimary,
    AppliesBackwards,
    DropsWhatCollides,
    SendsAnyLength,
    TagsNothing,
    ClosesEarly,
    WritesAtOnce,
    ReportsEarly,
    CommitsAnything,
    MergesEpochs,
    SealsTwice,
    RefusesToReleaseAgain,
    CommitsBackwards,
    AppliesAgain,
    SealsInStep,
    FlushesInStep,
    ClosedOnAStandby,
    WritableOnAStandby,
    ActivatesAll,
    EndsWithReplication,
    OpenToTheOtherSide,
    CopiesOnce,
    SaysNothing,
    WaitsForALostChannel,
    TakesAnything,
    ChecksNothing,
    WaitsWhenDropped,
    CountsNothing,
    ReplaysAtStart,
    ZeroesTooLittle,
}

pub(crate) struct Faulty {
    device: Arc<Device>,
    thread: Option<JoinHandle<()>>,
    sessions: u64,
}

impl Faulty {
    pub(crate) fn new(fault: Fault, path: &Path, side: Side, host: Arc<dyn Host>) -> Faulty {
        let access = if side == Side::Primary { Access::Open } else { Access::Standby };
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        let (state, changed) = (Mutex::new(State::new(access, size)), Condvar::new());
        let device = Arc::new(Device { fault, path: path.to_owned(), host, state, changed });
        if fault == Fault::ReplaysAtStart && side == Side::Standby {
            device.replay();
        }
        Faulty { device, thread: None, sessions: 0 }
    }

    fn end(&self) {
        let mut state = self.device.lock();
        state.session += 1;
        (state.replicating, state.sending) = (false, false);
        state.queue.clear();
        self.device.changed.notify_all();
    }
}

impl Disk for Faulty {
    fn depth(&self) -> u32 {
        4
    }

    fn route(&self) -> Option<String> {
        None
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }

    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        _back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError> {
        self.end();
        self.sessions += 1;
        let copies = self.sessions == 1 || !self.device.is(Fault::CopiesOnce);
        let mut state = self.device.lock();
        (state.replicating, state.open, state.released, state.copied) = (true, 0, 0, 0);
        state.sent = Sum::default();
        let size = state.size.to_le_bytes().to_vec();
        state.queue.push_back((RecordHead { epoch: Epoch::COPY, kind: SIZE }, size));
        if !copies {
            state.copied = state.size;
            state.queue.push_back((RecordHead { epoch: Epoch::COPY, kind: COPIED }, Vec::new()));
        }
        let (device, session) = (Arc::clone(&self.device), state.session);
        self.thread = Some(thread::spawn(move || {
            if let Err(why) = device.send(session, tx, copies) {
                device.ended(session, why);
            }
        }));
        Ok(())
    }

    fn progress(&self) -> DiskProgress {
        let state = self.device.lock();
        let claims = self.device.is(Fault::ClaimsTheCopy);
        // A session that copies nothing has nothing left to do.
        let skips = self.sessions > 1 && self.device.is(Fault::CopiesOnce);
        let done = if claims || skips { state.size } else { state.copied };
        DiskProgress { done, total: state.size }
    }

    fn pausing(&self) {
        self.device.lock().pausing = true;
        self.device.changed.notify_all();
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.device.lock();
        if !state.replicating {
            return Err(error(ErrorCode::PeerLost, "not replicated"));
        }
        // Whatever is copied by now: the rule has to catch a copy of any speed.
        if self.device.is(Fault::ClaimsTheCopy) {
            return Err(error(ErrorCode::Refused, "still copying"));
        }
        state.pausing = false;
        let again = epoch.0 < state.open.max(1);
        if again && !self.device.is(Fault::SealsTwice) {
            return Ok(());
        }
        let sum = state.sent.take().to_vec();
        let head = RecordHead { epoch, kind: BARRIER };
        state.queue.push_back((head, sum));
        state.open = epoch.0 + 1;
        self.device.changed.notify_all();
        while self.device.is(Fault::SealsInStep) && state.sends() {
            state = self.device.changed.wait(state).unwrap();
        }
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.device.lock();
        if epoch.0 <= state.released && self.device.is(Fault::RefusesToReleaseAgain) {
            return Err(error(ErrorCode::Internal, "again?"));
        }
        state.released = state.released.max(epoch.0);
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.end();
        let closes = match why {
            Disengage::Owner => self.device.is(Fault::EndsWithReplication),
            Disengage::NotOwner => !self.device.is(Fault::OpenToTheOtherSide),
        };
        if closes {
            self.device.lock().access = Access::Closed;
        }
        Ok(())
    }

    fn receive(&mut self, mut rx: Box<dyn RecordRx>, _back: Box<dyn RecordTx>) -> Result<(), PluginError> {
        let mut payload = Vec::new();
        match rx.recv(&mut payload) {
            Err(_) if self.device.is(Fault::BeginsWithoutAPrimary) => return Ok(()),
            answer => drop(answer?),
        }
        let size = u64::from_le_bytes(payload.try_into().unwrap());
        let mut state = self.device.lock();
        if state.size != size {
            if state.size != 0 && !self.device.is(Fault::FitsAnything) {
                return Err(error(ErrorCode::Refused, "another size"));
            }
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.device.path);
            file.unwrap().set_len(size).unwrap();
            state.size = size;
        }
        let device = Arc::clone(&self.device);
        thread::spawn(move || {
            if let Err(why) = device.take(&mut *rx) {
                let gone = device.lock().activated;
                if !gone && !device.is(Fault::SaysNothing) {
                    device.host.failed(why);
                }
            }
        });
        Ok(())
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.device.lock();
        if epoch.0 > state.staged && !self.device.is(Fault::CommitsAnything) {
            return Err(error(ErrorCode::Refused, "not staged"));
        }
        let back = self.device.is(Fault::CommitsBackwards);
        state.committed = if back { epoch.0 } else { state.committed.max(epoch.0) };
        Ok(())
    }

    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.device.bring(&mut self.device.lock(), epoch.0);
        Ok(())
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.device.lock();
        if epoch.0 > state.committed && !self.device.is(Fault::CommitsAnything) {
            return Err(error(ErrorCode::Refused, "not committed"));
        }
        let last = if self.device.is(Fault::ActivatesAll) { state.staged } else { epoch.0 };
        state.committed = last;
        self.device.bring(&mut state, last);
        state.epochs.clear();
        (state.access, state.activated) = (Access::Open, true);
        Ok(())
    }

    fn stats(&self) -> DiskStats {
        self.device.lock().stats
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let joins = self.device.is(Fault::WaitsWhenDropped);
        self.end();
        // What is read from now on is for nobody.
        self.device.lock().activated = true;
        if let Some(thread) = self.thread.take().filter(|_| joins) {
            thread.join().unwrap();
        }
    }
}
