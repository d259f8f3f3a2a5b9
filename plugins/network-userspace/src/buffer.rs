//! What is held, for which epoch: pure bookkeeping.

use aventine_api::{Disengage, Epoch, NetworkStats};
use std::collections::VecDeque;

/// What happens to a frame from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It goes on at once.
    Passing,
    /// It waits for the release of its epoch.
    Holding,
    /// It is discarded: another side owns the guest, or none does yet.
    Silent,
}

/// Frames held and frames on their way to the uplink.
pub(crate) struct Buffer {
    mode: Mode,
    limit: u64,
    /// Held frames, oldest first: those of `seals` in turn, then the open epoch's.
    held: VecDeque<Vec<u8>>,
    /// For each sealed epoch, how many of the held frames belong to it.
    seals: VecDeque<(Epoch, usize)>,
    /// Held frames that no seal covers.
    open: usize,
    /// The newest epoch sealed.
    sealed: Epoch,
    /// Frames for the uplink, oldest first.
    pub(crate) out: VecDeque<Vec<u8>>,
    ended: bool,
    /// Whether an early epoch was asked for since the last seal.
    asked: bool,
    spare: Vec<Vec<u8>>,
    pub(crate) stats: NetworkStats,
}

impl Buffer {
    /// Buffers kept for frames to come.
    const SPARE: usize = 1024;

    pub(crate) fn new(mode: Mode, limit: u64) -> Buffer {
        Buffer {
            mode,
            limit,
            held: VecDeque::new(),
            seals: VecDeque::new(),
            open: 0,
            sealed: Epoch::COPY,
            out: VecDeque::new(),
            ended: false,
            asked: false,
            spare: Vec::new(),
            stats: NetworkStats::default(),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes a frame from the guest; `true`: it is held.
    pub(crate) fn push(&mut self, frame: &[u8]) -> bool {
        if self.mode == Mode::Silent {
            return false;
        }
        let mut own = self.spare.pop().unwrap_or_default();
        own.extend_from_slice(frame);
        if self.mode == Mode::Passing {
            self.out.push_back(own);
        } else {
            self.stats.held_frames += 1;
            self.stats.held_bytes += own.len() as u64;
            self.open += 1;
            self.held.push_back(own);
        }
        self.mode == Mode::Holding
    }

    /// Whether frames may be read from the guest: at the limit it has to wait.
    pub(crate) fn has_room(&self) -> bool {
        self.stats.held_bytes < self.limit && self.out.len() < Self::SPARE
    }

    /// Once for each open epoch, when half the limit is held: the epoch should end early.
    pub(crate) fn wants_epoch(&mut self) -> bool {
        let wants = self.open > 0 && self.stats.held_bytes >= self.limit / 2 && !self.asked;
        self.asked |= wants;
        wants
    }

    /// Whether frames are held from now on: not while another side owns the guest. A new session counts its epochs
    /// anew.
    pub(crate) fn engage(&mut self) -> bool {
        if self.mode == Mode::Passing {
            self.mode = Mode::Holding;
            self.sealed = Epoch::COPY;
            self.ended = false;
        }
        self.mode == Mode::Holding
    }

    /// Frames pass from now on, `before` ahead of all others.
    pub(crate) fn activate(&mut self, before: Vec<Vec<u8>>) {
        if self.mode == Mode::Silent && !self.ended {
            self.mode = Mode::Passing;
            self.out.extend(before);
        }
    }

    pub(crate) fn seal(&mut self, epoch: Epoch) {
        if epoch > self.sealed {
            self.sealed = epoch;
            self.seals.push_back((epoch, std::mem::take(&mut self.open)));
            self.asked = false;
        }
    }

    pub(crate) fn release(&mut self, epoch: Epoch) {
        while let Some(&(sealed, frames)) = self.seals.front() {
            if sealed > epoch {
                return;
            }
            self.seals.pop_front();
            self.let_out(frames);
        }
    }

    pub(crate) fn disengage(&mut self, why: Disengage) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match why {
            Disengage::Owner => {
                self.mode = Mode::Passing;
                self.let_out(self.held.len());
            }
            Disengage::NotOwner => {
                self.mode = Mode::Silent;
                self.held.clear();
                self.out.clear();
                (self.stats.held_frames, self.stats.held_bytes) = (0, 0);
            }
        }
        self.seals.clear();
        self.open = 0;
    }

    fn let_out(&mut self, frames: usize) {
        for frame in self.held.drain(..frames) {
            self.stats.held_frames -= 1;
            self.stats.held_bytes -= frame.len() as u64;
            self.out.push_back(frame);
        }
    }

    /// The front of `out` is dealt with.
    pub(crate) fn sent(&mut self, taken: bool) {
        if taken {
            self.stats.sent_frames += 1;
        } else {
            self.stats.dropped_frames += 1;
        }
        if let Some(mut frame) = self.out.pop_front()
            && self.spare.len() < Self::SPARE
        {
            frame.clear();
            self.spare.push(frame);
        }
    }
}
