//! Standby: the primary's recent frames, kept until a takeover repeats them.
//!
//! Of frames to the guest those are kept that the newest released epoch does not cover, of frames from it those that are
//! not released. At a takeover at epoch *c* the guest gets the first that *c* does not cover, and the world those of the
//! second that *c* covers: never one that the guest sent later. Where the seal of *c* itself did not arrive, that of the
//! epoch before serves: it repeats more to the guest and less to the world.
//!
//! Memory is bounded: at the limit the oldest frames go.

use crate::attract::Addresses;
use crate::wire::{Record, RecordError, Seal, Way};
use aventine_api::{Epoch, ErrorCode, PluginError, RecordHead, RecordRx};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tracing::{debug, warn};

/// Most bytes kept of each way.
const LIMIT: usize = 4 << 20;
/// What a frame takes beside its bytes.
const FRAME: usize = 64;
/// Most seals kept: more than epochs can be in flight.
const SEALS: usize = 64;
/// A seal that is older than this many epochs says too little: copies no longer arrive.
const STALE: u64 = 2;

/// What a takeover repeats, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Repeat {
    pub(crate) to_guest: Vec<Vec<u8>>,
    pub(crate) from_guest: Vec<Vec<u8>>,
}

/// The frames of one session.
#[derive(Default)]
pub(crate) struct Recent {
    to_guest: Kept,
    from_guest: Kept,
    seals: VecDeque<Seal>,
    /// Whose frames they are.
    addresses: Addresses,
}

#[derive(Default)]
struct Kept {
    frames: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// The number that is due, at least.
    next: u64,
}

impl Recent {
    /// Keeps what comes on `rx`, on a thread that ends with the channel.
    pub(crate) fn start(id: &str, mut rx: Box<dyn RecordRx>) -> io::Result<Arc<Mutex<Recent>>> {
        let recent = Arc::new(Mutex::new(Recent::default()));
        let keeping = Arc::clone(&recent);
        // Not kept: it may wait in the channel, and ends with it.
        thread::Builder::new().name(format!("{id} recent")).spawn(move || {
            let error = receive(rx.as_mut(), &keeping);
            if error.code() == ErrorCode::PeerLost {
                debug!(error = error.chain(), "no more copies of frames come from the primary");
            } else {
                // What may be wrong is not repeated.
                *keeping.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
                warn!(error = error.chain(), "copies of frames from the primary are not kept any more");
            }
        })?;
        Ok(recent)
    }

    pub(crate) fn take(&mut self, head: RecordHead, payload: &[u8]) -> Result<(), RecordError> {
        match Record::decode(head, payload)? {
            Record::Frames(way, frames) => {
                if way == Way::FromGuest {
                    frames.iter().for_each(|(_, frame)| self.addresses.learn(frame));
                }
                let kept = match way {
                    Way::ToGuest => &mut self.to_guest,
                    Way::FromGuest => &mut self.from_guest,
                };
                frames.into_iter().try_for_each(|(number, frame)| kept.add(number, frame))
            }
            Record::Seal(seal) => self.seal(seal),
        }
    }

    fn seal(&mut self, seal: Seal) -> Result<(), RecordError> {
        if let Some(last) = self.seals.back() {
            let order = |got: u64, before: u64| match got < before {
                true => Err(RecordError::Order { got, before }),
                false => Ok(()),
            };
            order(seal.epoch.0, last.epoch.0.saturating_add(1))?;
            order(seal.to_guest, last.to_guest)?;
            order(seal.from_guest, last.from_guest)?;
        }
        self.seals.push_back(seal);
        while self.seals.len() > SEALS || self.seals.get(1).is_some_and(|s| s.epoch <= seal.released) {
            self.seals.pop_front();
        }
        if let Some(released) = self.seals.front().filter(|s| s.epoch <= seal.released) {
            self.to_guest.forget(released.to_guest);
            self.from_guest.forget(released.from_guest);
        }
        Ok(())
    }

    /// The addresses of the guest that these are the frames of.
    pub(crate) fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    /// What a takeover at `epoch` repeats; nothing is kept.
    pub(crate) fn repeat(&mut self, epoch: Epoch) -> Repeat {
        let Recent { mut to_guest, mut from_guest, seals, .. } = std::mem::take(self);
        let Some(seal) = seals.iter().rev().find(|s| s.epoch <= epoch) else { return Repeat::default() };
        if epoch.0 - seal.epoch.0 > STALE {
            return Repeat::default();
        }
        to_guest.forget(seal.to_guest);
        from_guest.frames.retain(|(number, _)| *number < seal.from_guest);
        let frames = |kept: Kept| kept.frames.into_iter().map(|(_, frame)| frame).collect();
        Repeat { to_guest: frames(to_guest), from_guest: frames(from_guest) }
    }
}

impl Kept {
    fn add(&mut self, number: u64, frame: &[u8]) -> Result<(), RecordError> {
        if number < self.next {
            return Err(RecordError::Order { got: number, before: self.next });
        }
        self.next = number + 1;
        self.bytes += FRAME + frame.len();
        self.frames.push_back((number, frame.to_vec()));
        while self.bytes > LIMIT {
            self.pop();
        }
        Ok(())
    }

    /// Frames before `number` are not needed.
    fn forget(&mut self, number: u64) {
        while self.frames.front().is_some_and(|(n, _)| *n < number) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, frame)) = self.frames.pop_front() {
            self.bytes -= FRAME + frame.len();
        }
    }
}

/// Takes records until one is wrong or the channel ends; answers why.
fn receive(rx: &mut dyn RecordRx, recent: &Mutex<Recent>) -> PluginError {
    let mut payload = Vec::new();
    loop {
        let head = match rx.recv(&mut payload) {
            Ok(head) => head,
            Err(error) => return error,
        };
        let taken = recent.lock().unwrap_or_else(PoisonError::into_inner).take(head, &payload);
        if let Err(error) = taken {
            return PluginError::new(ErrorCode::Corrupt, error);
        }
    }
}
