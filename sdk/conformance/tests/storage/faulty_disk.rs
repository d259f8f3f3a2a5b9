//! A disk that keeps every rule but the one that its fault breaks.
//!
//! ```text
//!  Size    size u64
//!  Change  offset u64, length u64, data (none: zeroes)
//!  Copied
//!  Barrier sum u64 of all bytes since the last one, each with its place
//! ```

use aventine_api::{
    BlockDevice, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Host, MAX_RECORD, PluginError,
    RecordHead, RecordRx, RecordTx, Side,
};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
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

/// Queued records above which the guest's writes wait.
const QUEUE: usize = 64;
/// Longest data of a change.
const PIECE: usize = 64 << 10;

const SIZE: u8 = 1;
const CHANGE: u8 = 2;
const COPIED: u8 = 3;
const BARRIER: u8 = 4;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

fn error(code: ErrorCode, why: &'static str) -> PluginError {
    PluginError::new(code, Why(why))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Standby,
    Open,
    Closed,
}

#[derive(Clone)]
struct Change {
    offset: u64,
    len: u64,
    data: Vec<u8>,
}

impl Change {
    fn encode(&self) -> Vec<u8> {
        [&self.offset.to_le_bytes()[..], &self.len.to_le_bytes(), &self.data].concat()
    }

    fn parse(payload: &[u8], size: u64) -> Option<Change> {
        let (offset, rest) = payload.split_first_chunk()?;
        let (len, data) = rest.split_first_chunk()?;
        let (offset, len) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*len));
        let fits = offset.checked_add(len)? <= size && (data.is_empty() || data.len() as u64 == len);
        fits.then(|| Change { offset, len, data: data.to_vec() })
    }
}

#[derive(Default)]
struct Sum(u64, u64);

impl Sum {
    fn add(&mut self, payload: &[u8]) {
        for byte in payload {
            self.1 += 1;
            self.0 = self.0.wrapping_mul(31).wrapping_add(u64::from(*byte) + self.1);
        }
    }

    fn take(&mut self) -> [u8; 8] {
        std::mem::take(self).0.to_le_bytes()
    }
}

struct State {
    access: Access,
    size: u64,
    // Primary.
    session: u64,
    replicating: bool,
    pausing: bool,
    queue: VecDeque<(RecordHead, Vec<u8>)>,
    sending: bool,
    sent: Sum,
    open: u64,
    released: u64,
    copied: u64,
    // Standby.
    activated: bool,
    kept: Vec<Change>,
    epochs: VecDeque<(u64, Vec<Change>)>,
    done: Vec<(u64, Vec<Change>)>,
    staged: u64,
    committed: u64,
    stats: DiskStats,
}

impl State {
    /// Whether something is on its way.
    fn sends(&self) -> bool {
        self.replicating && (self.sending || !self.queue.is_empty())
    }
}

struct Device {
    fault: Fault,
    path: PathBuf,
    host: Arc<dyn Host>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).unwrap()
    }

    fn store(&self, change: &Change) {
        let zeroes;
        let data = if change.data.is_empty() {
            let short = u64::from(self.is(Fault::ZeroesTooLittle) && change.len > 4096);
            zeroes = vec![0; (change.len - short) as usize];
            &zeroes
        } else {
            &change.data
        };
        self.file().write_all_at(data, change.offset).unwrap();
    }

    /// Queues what the image has, in pieces.
    fn queue(&self, state: &mut State, change: &Change) {
        let piece = if self.is(Fault::SendsAnyLength) { 2 * MAX_RECORD + 512 } else { PIECE };
        let mut offset = change.offset;
        let pieces: Vec<Change> = if change.data.is_empty() {
            vec![change.clone()]
        } else {
            let each = |data: &[u8]| {
                let change = Change { offset, len: data.len() as u64, data: data.to_vec() };
                offset += change.len;
                change
            };
            change.data.chunks(piece).map(each).collect()
        };
        for change in pieces {
            let payload = change.encode();
            state.sent.add(&payload);
            state.stats.replicated_bytes += payload.len() as u64;
            let epoch = Epoch(if self.is(Fault::TagsNothing) { 0 } else { state.open });
            state.queue.push_back((RecordHead { epoch, kind: CHANGE }, payload));
        }
        self.changed.notify_all();
    }

    fn change(&self, change: Change) -> Result<(), PluginError> {
        if self.is(Fault::DropsWhatCollides) && self.state.try_lock().is_err() {
            self.store(&change);
            return Ok(());
        }
        let mut state = self.lock();
        match state.access {
            Access::Closed => return Err(error(ErrorCode::Io, "not the owner")),
            Access::Standby if !self.is(Fault::WritableOnAStandby) => {
                return Err(error(ErrorCode::Refused, "a standby"));
            }
            _ => {}
        }
        while state.replicating && !state.pausing && state.queue.len() > QUEUE {
            state = self.changed.wait(state).unwrap();
        }
        self.store(&change);
        if !self.is(Fault::CountsNothing) {
            state.stats.written_bytes += change.data.len() as u64;
        }
        if state.replicating {
            self.queue(&mut state, &change);
        }
        Ok(())
    }

    /// The primary's thread: a piece of the copy, then what is queued, and so on.
    fn send(&self, session: u64, mut tx: Box<dyn RecordTx>, mut copy: bool) -> Result<(), PluginError> {
        let before = self.is(Fault::CopiesWhatWasThere).then(|| std::fs::read(&self.path).unwrap());
        let mut at = 0;
        loop {
            let mut state = self.lock();
            while state.session == session && !copy && state.queue.is_empty() {
                state = self.changed.wait(state).unwrap();
            }
            if state.session != session {
                return Ok(());
            }
            if copy && (state.queue.is_empty() || before.is_none()) {
                let len = (state.size - at).min(PIECE as u64);
                let mut data = vec![0; len as usize];
                match &before {
                    Some(image) => data.copy_from_slice(&image[at as usize..(at + len) as usize]),
                    None => self.file().read_exact_at(&mut data, at).unwrap(),
                }
                if !self.is(Fault::SkipsZeroes) || data.iter().any(|&b| b != 0) {
                    self.queue(&mut state, &Change { offset: at, len, data });
                }
                at += len;
                if at == state.size {
                    copy = false;
                    state.queue.push_back((RecordHead { epoch: Epoch::COPY, kind: COPIED }, Vec::new()));
                }
            }
            let records = std::mem::take(&mut state.queue);
            state.sending = true;
            drop(state);
            for (head, payload) in &records {
                tx.send(*head, &[payload])?;
            }
            let mut state = self.lock();
            (state.copied, state.sending) = (at, false);
            drop(state);
            self.changed.notify_all();
        }
    }

    fn ended(&self, session: u64, why: PluginError) {
        let mut state = self.lock();
        if state.session != session {
            return;
        }
        if !self.is(Fault::WaitsForALostChannel) {
            state.replicating = false;
            state.queue.clear();
        }
        drop(state);
        self.changed.notify_all();
        if !self.is(Fault::SaysNothing) {
            self.host.failed(why);
        }
    }

    /// The standby's thread.
    fn take(&self, rx: &mut dyn RecordRx) -> Result<(), PluginError> {
        let (mut payload, mut sum, mut copied) = (Vec::new(), Sum::default(), false);
        let foreign = |_| match self.is(Fault::TakesAnything) {
            true => Ok(()),
            false => Err(error(ErrorCode::Corrupt, "what is this?")),
        };
        loop {
            let head = rx.recv(&mut payload)?;
            let mut state = self.lock();
            let open = if state.staged == 0 { 0 } else { state.staged + 1 };
            let in_turn = head.epoch.0 == open || self.is(Fault::TagsNothing);
            match (head.kind, Change::parse(&payload, state.size)) {
                _ if state.activated => return Ok(()),
                (CHANGE, Some(change)) if in_turn => {
                    sum.add(&payload);
                    if state.staged == 0 || self.is(Fault::WritesAtOnce) {
                        self.store(&change);
                    } else {
                        self.keep(&mut state, change);
                        if self.is(Fault::ReportsEarly) && state.kept.len() == 1 {
                            drop(state);
                            self.host.staged(Epoch(open));
                        }
                    }
                }
                (COPIED, _) => copied = true,
                (BARRIER, _) if copied && head.epoch.0 == state.staged + 1 => {
                    if payload != sum.take() && !self.is(Fault::ChecksNothing) {
                        foreign(())?;
                    }
                    self.close(state, head.epoch);
                }
                _ => foreign(())?,
            }
        }
    }

    fn keep(&self, state: &mut State, change: Change) {
        if self.is(Fault::ReplaysAtStart) {
            let journal = self.path.with_extension("journal");
            let mut journal = OpenOptions::new().append(true).create(true).open(journal).unwrap();
            let bytes = change.encode();
            journal.write_all(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat()).unwrap();
        }
        state.stats.buffered_bytes += change.data.len() as u64;
        state.kept.push(change);
    }

    fn replay(&self) {
        let journal = std::fs::read(self.path.with_extension("journal")).unwrap_or_default();
        let mut rest = &journal[..];
        while let Some((len, more)) = rest.split_first_chunk() {
            let (change, more) = more.split_at(u64::from_le_bytes(*len) as usize);
            self.store(&Change::parse(change, u64::MAX).unwrap());
            rest = more;
        }
    }

    fn close(&self, mut state: MutexGuard<'_, State>, epoch: Epoch) {
        let mut kept = std::mem::take(&mut state.kept);
        let reported = self.is(Fault::ReportsEarly) && !kept.is_empty();
        if self.is(Fault::ClosesEarly) {
            state.kept.extend(kept.pop());
        }
        match state.epochs.back_mut() {
            Some((last, changes)) if self.is(Fault::MergesEpochs) => {
                *last = epoch.0;
                changes.extend(kept);
            }
            _ => state.epochs.push_back((epoch.0, kept)),
        }
        state.staged = epoch.0;
        drop(state);
        if !reported {
            self.host.staged(epoch);
        }
    }

    fn bring(&self, state: &mut State, epoch: u64) {
        if self.is(Fault::AppliesAgain) {
            let again: Vec<_> = state.done.iter().filter(|(of, _)| *of == epoch).cloned().collect();
            again.iter().flat_map(|(_, changes)| changes).for_each(|c| self.store(c));
        }
        while state.epochs.front().is_some_and(|(of, _)| *of <= epoch.min(state.committed)) {
            let (of, mut changes) = state.epochs.pop_front().unwrap();
            if self.is(Fault::AppliesBackwards) {
                changes.reverse();
            }
            changes.iter().for_each(|c| self.store(c));
            state.stats.buffered_bytes -= changes.iter().map(|c| c.data.len() as u64).sum::<u64>();
            state.done.push((of, changes));
        }
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        let state = self.lock();
        if state.activated && self.is(Fault::ForgetsItsSize) { 0 } else { state.size }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        match self.lock().access {
            Access::Closed => Err(error(ErrorCode::Io, "not the owner")),
            Access::Standby if self.is(Fault::ClosedOnAStandby) => Err(error(ErrorCode::Io, "a standby")),
            _ => self.file().read_exact_at(buf, offset).map_err(|e| PluginError::new(ErrorCode::Io, e)),
        }
    }

    fn write(&self, offset: u64, data: &[u8], _fua: bool) -> Result<(), PluginError> {
        let len = data.len() - if self.is(Fault::LosesOddBytes) { data.len() % 2 } else { 0 };
        self.change(Change { offset, len: len as u64, data: data[..len].to_vec() })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, _: bool) -> Result<(), PluginError> {
        self.change(Change { offset, len, data: Vec::new() })
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        let len = if self.is(Fault::TrimsNothing) { 0 } else { len };
        self.change(Change { offset, len, data: Vec::new() })
    }

    fn flush(&self) -> Result<(), PluginError> {
        let mut state = self.lock();
        while self.is(Fault::FlushesInStep) && state.sends() {
            state = self.changed.wait(state).unwrap();
        }
        Ok(())
    }
}

pub(crate) struct Faulty {
    device: Arc<Device>,
    thread: Option<JoinHandle<()>>,
    sessions: u64,
}

impl Faulty {
    pub(crate) fn new(fault: Fault, path: &Path, side: Side, host: Arc<dyn Host>) -> Faulty {
        let state = State {
            access: if side == Side::Primary { Access::Open } else { Access::Standby },
            size: std::fs::metadata(path).map_or(0, |m| m.len()),
            session: 0,
            replicating: false,
            pausing: false,
            queue: VecDeque::new(),
            sending: false,
            sent: Sum::default(),
            open: 0,
            released: 0,
            copied: 0,
            activated: false,
            kept: Vec::new(),
            epochs: VecDeque::new(),
            done: Vec::new(),
            staged: 0,
            committed: 0,
            stats: DiskStats::default(),
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let device = Arc::new(Device { fault, path: path.to_owned(), host, state, changed });
        if fault == Fault::ReplaysAtStart && side == Side::Standby {
            device.replay();
        }
        Faulty { device, thread: None, sessions: 0 }
    }

    fn end(&self) {
        let mut state = self.device.lock();
        state.session += 1;
        state.replicating = false;
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

    fn replicate(&mut self, tx: Box<dyn RecordTx>) -> Result<(), PluginError> {
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
        if self.device.is(Fault::ClaimsTheCopy) && state.copied < state.size {
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

    fn receive(&mut self, mut rx: Box<dyn RecordRx>) -> Result<(), PluginError> {
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
