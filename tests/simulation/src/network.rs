//! The network between the two hosts: one link a session, five lanes, each in order, none in step with another.
//!
//! ```text
//!            ── lane Down ───► ┐
//!            ◄─ lane Up ────── ┘ the two directions of `control`: they die together
//!  primary   ── lane Pages ──►      standby
//!            ── lane Disk(0) ►
//!            ── lane Disk(1) ►
//! ```
//! A message arrives when the schedule says so. A dead lane still delivers what was on its way when it died, except for
//! a tail that the schedule takes away. Frames are numbered as on the wire: one that is swallowed in the middle is
//! noticed at the next.

use crate::guest::{DISKS, Disk, PAGES};
use aventine_api::{Epoch, Side};
use aventine_protocol::EndReason;
use std::collections::VecDeque;

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    End(EndReason),
    Yield,
    HandOver,
    Acknowledge(Epoch),
    EndAck,
    Failed,
    TookOver,
    /// The initial copy of memory.
    CopyMemory([u64; PAGES]),
    /// Pages of an epoch.
    Pages(Epoch, [Option<u64>; PAGES]),
    /// The end of a checkpoint, with the device state.
    CheckpointEnd {
        epoch: Epoch,
        armed: bool,
        device: u64,
    },
    /// The initial copy of a disk.
    CopyDisk(Disk),
    Write {
        epoch: Epoch,
        block: usize,
        value: u64,
    },
    Barrier(Epoch),
}

/// One direction of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// `control`, from the primary.
    Down,
    /// `control`, from the standby.
    Up,
    /// `pages`.
    Pages,
    /// `disk:N`.
    Disk(usize),
}

pub(crate) const LANES: usize = 3 + DISKS;

impl Lane {
    pub(crate) fn all() -> impl Iterator<Item = Lane> {
        [Lane::Down, Lane::Up, Lane::Pages].into_iter().chain((0..DISKS).map(Lane::Disk))
    }

    pub(crate) fn of(number: u64) -> Lane {
        match number % LANES as u64 {
            0 => Lane::Down,
            1 => Lane::Up,
            2 => Lane::Pages,
            n => Lane::Disk(n as usize - 3),
        }
    }

    fn index(self) -> usize {
        match self {
            Lane::Down => 0,
            Lane::Up => 1,
            Lane::Pages => 2,
            Lane::Disk(n) => 3 + n,
        }
    }

    /// Who receives on it.
    pub(crate) fn receiver(self) -> Side {
        if self == Lane::Up { Side::Primary } else { Side::Standby }
    }
}

#[derive(Clone, Debug, Default)]
struct LaneState {
    queue: VecDeque<(u32, Message)>,
    sent: u32,
    received: u32,
    dead: bool,
    /// Whether the primary's and the standby's end have noticed the death.
    noticed: [bool; 2],
}

/// What comes out of a lane.
pub(crate) enum Arrival {
    Message(Message),
    /// A frame before this one is missing.
    Gap(Message),
}

/// The link of one session.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    lanes: [LaneState; LANES],
}

impl Link {
    pub(crate) fn new() -> Link {
        Link { lanes: Default::default() }
    }

    pub(crate) fn send(&mut self, lane: Lane, message: Message) {
        let lane = &mut self.lanes[lane.index()];
        if !lane.dead {
            lane.queue.push_back((lane.sent, message));
            lane.sent += 1;
        }
    }

    pub(crate) fn is_dead(&self, lane: Lane) -> bool {
        self.lanes[lane.index()].dead
    }

    pub(crate) fn has_message(&self, lane: Lane) -> bool {
        !self.lanes[lane.index()].queue.is_empty()
    }

    pub(crate) fn receive(&mut self, lane: Lane) -> Option<Arrival> {
        let lane = &mut self.lanes[lane.index()];
        let (number, message) = lane.queue.pop_front()?;
        let expected = std::mem::replace(&mut lane.received, number + 1);
        Some(if number == expected { Arrival::Message(message) } else { Arrival::Gap(message) })
    }

    /// The channel dies; of what is on its way in each direction only the first `keep` messages still arrive.
    pub(crate) fn kill(&mut self, lane: Lane, keep: usize) {
        let both = [Lane::Down, Lane::Up];
        let lanes: &[Lane] = if both.contains(&lane) { &both } else { &[lane] };
        for lane in lanes {
            let state = &mut self.lanes[lane.index()];
            state.dead = true;
            state.queue.truncate(keep);
        }
    }

    /// `side` is gone: all channels die, and nothing arrives there any more.
    pub(crate) fn close(&mut self, side: Side, keep: usize) {
        for lane in Lane::all() {
            let state = &mut self.lanes[lane.index()];
            state.dead = true;
            state.queue.truncate(if lane.receiver() == side { 0 } else { keep });
        }
    }

    /// Takes a message away that others follow. Answers whether there was one.
    pub(crate) fn swallow(&mut self, lane: Lane) -> bool {
        let queue = &mut self.lanes[lane.index()].queue;
        let there = queue.len() >= 2;
        if there {
            queue.pop_front();
        }
        there
    }

    /// `side` notices that the lane is dead: a receiver once everything on it has arrived. Once for each side.
    pub(crate) fn notice(&mut self, side: Side, lane: Lane) -> bool {
        let state = &mut self.lanes[lane.index()];
        let drained = lane.receiver() != side || state.queue.is_empty();
        let noticed = &mut state.noticed[usize::from(side == Side::Standby)];
        state.dead && drained && !std::mem::replace(noticed, true)
    }
}
