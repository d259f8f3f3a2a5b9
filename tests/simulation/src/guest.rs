//! The guest: what a checkpoint must hold and what the world hears, small enough to be compared at every step.
//!
//! Each step of the guest has a number of its own, never used twice. It writes the number into its device state, into a
//! page and perhaps a block, and says it to the world. So every value tells which step wrote it, and a state is explained
//! by a checkpoint when no number in it is higher than the checkpoint's device state.

use crate::promise::Promise;
use aventine_api::Epoch;
use std::collections::VecDeque;

pub(crate) const PAGES: usize = 4;
pub(crate) const DISKS: usize = 2;
pub(crate) const BLOCKS: usize = 4;

pub(crate) type Disk = [u64; BLOCKS];

/// All of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) device: u64,
    pub(crate) memory: [u64; PAGES],
    pub(crate) disks: [Disk; DISKS],
}

impl State {
    /// How this state, which should be `truth`, differs from it, and whose promise that breaks. `missing` is the promise
    /// broken by a value that is too old.
    pub(crate) fn differs(&self, truth: &State, missing: Promise) -> Option<(Promise, &'static str)> {
        let later = |values: &[u64]| values.iter().any(|&v| v > truth.device);
        if self.disks.iter().any(|d| later(d)) {
            return Some((Promise::OneEpochNumber, "a disk holds a write of a later epoch"));
        }
        if later(&self.memory) || self.device > truth.device {
            return Some((Promise::AllOrNothing, "memory holds a part of a later epoch"));
        }
        if self.memory != truth.memory || self.device != truth.device {
            return Some((missing, "memory or device state lack a change of the epoch"));
        }
        (self.disks != truth.disks).then_some((missing, "a disk lacks a write of the epoch"))
    }
}

/// A running guest, as the primary sees it.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) state: State,
    pub(crate) dirty: [bool; PAGES],
}

/// Where a network buffer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Passing,
    Holding,
    Silent,
}

/// The primary's network buffer.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    pub(crate) mode: Mode,
    /// Frames and the epoch they were sealed into.
    pub(crate) held: VecDeque<(u64, Option<Epoch>)>,
}

impl Buffer {
    pub(crate) fn new() -> Buffer {
        Buffer { mode: Mode::Passing, held: VecDeque::new() }
    }

    pub(crate) fn seal(&mut self, epoch: Epoch) {
        self.held
            .iter_mut()
            .rev()
            .map_while(|(_, e)| e.is_none().then_some(e))
            .for_each(|e| *e = Some(epoch));
    }

    /// The next frame that a release of `epoch` lets out.
    pub(crate) fn pop(&mut self, epoch: Epoch) -> Option<u64> {
        let due = self.held.front().is_some_and(|(_, e)| e.is_some_and(|e| e <= epoch));
        due.then(|| self.held.pop_front()).flatten().map(|(frame, _)| frame)
    }
}
