//! Its device, and the two threads.

use super::Fault;
use aventine_api::{
    BlockDevice, DiskStats, Epoch, ErrorCode, Host, MAX_RECORD, PluginError, RecordHead, RecordRx, RecordTx,
};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Queued records above which the guest's writes wait.
const QUEUE: usize = 64;
/// Longest data of a change.
const PIECE: usize = 64 << 10;

pub(super) const SIZE: u8 = 1;
const CHANGE: u8 = 2;
pub(super) const COPIED: u8 = 3;
pub(super) const BARRIER: u8 = 4;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

pub(super) fn error(code: ErrorCode, why: &'static str) -> PluginError {
    PluginError::new(code, Why(why))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Standby,
    Open,
    Closed,
}

#[derive(Clone)]
pub(super) struct Change {
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
pub(super) struct Sum(u64, u64);

impl Sum {
    fn add(&mut self, payload: &[u8]) {
        for byte in payload {
            self.1 += 1;
            self.0 = self.0.wrapping_mul(31).wrapping_add(u64::from(*byte) + self.1);
        }
    }

    pub(super) fn take(&mut self) -> [u8; 8] {
        std::mem::take(self).0.to_le_bytes()
    }
}

pub(super) struct State {
    pub(super) access: Access,
    pub(super) size: u64,
    // Primary.
    pub(super) session: u64,
    pub(super) replicating: bool,
    pub(super) pausing: bool,
    pub(super) queue: VecDeque<(RecordHead, Vec<u8>)>,
    pub(super) sending: bool,
    pub(super) sent: Sum,
    pub(super) open: u64,
    pub(super) released: u64,
    pub(super) copied: u64,
    // Standby.
    pub(super) activated: bool,
    pub(super) kept: Vec<Change>,
    pub(super) epochs: VecDeque<(u64, Vec<Change>)>,
    pub(super) done: Vec<(u64, Vec<Change>)>,
    pub(super) staged: u64,
    pub(super) committed: u64,
    pub(super) stats: DiskStats,
}

impl State {
    pub(super) fn new(access: Access, size: u64) -> State {
        State {
            access,
            size,
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
        }
    }

    /// Whether something is on its way.
    pub(super) fn sends(&self) -> bool {
        self.replicating && (self.sending || !self.queue.is_empty())
    }
}

pub(super) struct Device {
    pub(super) fault: Fault,
    pub(super) path: PathBuf,
    pub(super) host: Arc<dyn Host>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

impl Device {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn is(&self, fault: Fault) -> bool {
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
    pub(super) fn send(
        &self,
        session: u64,
        mut tx: Box<dyn RecordTx>,
        mut copy: bool,
    ) -> Result<(), PluginError> {
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
            if state.session != session {
                return Ok(());
            }
            (state.copied, state.sending) = (at, false);
            drop(state);
            self.changed.notify_all();
        }
    }

    pub(super) fn ended(&self, session: u64, why: PluginError) {
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
    pub(super) fn take(&self, rx: &mut dyn RecordRx) -> Result<(), PluginError> {
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

    pub(super) fn replay(&self) {
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

    pub(super) fn bring(&self, state: &mut State, epoch: u64) {
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
