//! Schedules: what may happen next, and how likely it is.
//!
//! A schedule is a list of choices. Each choice is possible or not in the state that it meets; one that is not changes
//! nothing, so that any part of a schedule is a schedule. Each seed first draws how likely every kind of choice is in
//! its schedule, and switches about half of the faults off: slow standbys, lanes that lag far behind the others, storms
//! of one kind of fault all come out of that.

use crate::network::Lane;
use crate::random::Random;
use aventine_api::Side;

/// What does not change during a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Sealed epochs that the primary's buffers can hold.
    pub depth: u32,
    /// Whether a person is the arbiter.
    pub manual: bool,
    /// Whether a partition that is there in the end heals.
    pub heals: bool,
    /// The side that cannot ask the arbiter in the end, if any.
    pub away: Option<Side>,
}

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The guest makes a step; the number says which page and block it writes.
    GuestRuns(u8),
    /// The initial copy is done.
    Copied,
    /// The primary seals an epoch and sends it.
    Seal,
    /// A host carries out the next thing that its machine told it.
    CarryOut(Side),
    /// The next message of a lane arrives.
    Deliver(Lane),
    /// A primary without a session and a standby without one agree on one.
    Connect,
    /// A claim reaches the arbiter.
    ArbiterHears {
        /// Whose claim.
        side: Side,
        /// Whether the answer gets lost.
        lost: bool,
    },
    /// The arbiter's answer arrives.
    VerdictArrives(Side),
    /// A host notices that a channel is dead.
    Notice(Side, Lane),
    /// A host that hears nothing takes the other for lost, sooner or later.
    Detect(Side),
    /// A host takes the other for lost because its clock runs wrong.
    ClockRunsAhead(Side),
    /// The standby gives up a session that lost a channel while the primary lives.
    ChannelTimeout,
    /// A host crashes; of what it sent last, so many messages of each lane still arrive.
    Crash(Side, u8),
    /// A crashed host comes back.
    Restart(Side),
    /// The link dies, like a crash of both ends' network.
    CutLink(u8),
    /// A channel dies.
    CutLane(Lane, u8),
    /// Nothing arrives at this side any more, and nothing is lost.
    Block(Side),
    /// It arrives again.
    Heal(Side),
    /// The network loses a message in the middle of a stream.
    Swallow(Lane),
    /// The standby's next commit fails.
    FailCommit,
    /// The standby's next application fails half-way: in memory, or in a disk.
    FailApply(u8),
    /// The standby fails otherwise: its disk is full, its waiting guest dies, an operator stops it.
    StandbyFails,
    /// The primary can no longer replicate.
    PrimaryFails,
    /// An operator stops protection.
    Stop,
    /// The guest shuts down.
    ShutDown,
    /// The guest's process is gone.
    GuestLost,
    /// An operator hands the guest over to the standby's host.
    HandOver,
    /// The two hosts change roles: the one that took over looks for a standby, the other one is it.
    Reverse,
    /// A side can no longer ask the arbiter.
    ArbiterAway(Side),
    /// It can again.
    ArbiterBack(Side),
    /// The person who is the arbiter decides.
    PersonDecides(Side),
}

fn side(number: u64) -> Side {
    if number.is_multiple_of(2) { Side::Primary } else { Side::Standby }
}

/// Most of the time everything on its way arrives.
fn keep(number: u64) -> u8 {
    [255, 255, 0, 1, 2, 3][(number % 6) as usize]
}

type Make = fn(u64) -> Choice;

/// How often each kind is drawn, relative to the others.
const ORDINARY: [(Make, u64); 12] = [
    (|n| Choice::GuestRuns(n as u8), 24),
    (|_| Choice::Copied, 12),
    (|_| Choice::Seal, 12),
    (|_| Choice::CarryOut(Side::Primary), 32),
    (|_| Choice::CarryOut(Side::Standby), 48),
    (|_| Choice::Deliver(Lane::Down), 12),
    (|_| Choice::Deliver(Lane::Up), 16),
    (|_| Choice::Deliver(Lane::Pages), 24),
    (|n| Choice::Deliver(Lane::of(3 + n % 2)), 48),
    (|_| Choice::Connect, 12),
    (|_| Choice::Reverse, 12),
    (|n| Choice::Notice(side(n), Lane::of(n >> 1)), 8),
];

/// What follows from a fault.
const DECIDING: [(Make, u64); 7] = [
    (|n| Choice::Detect(side(n)), 16),
    (|n| Choice::ArbiterHears { side: side(n), lost: n % 8 < 2 }, 16),
    (|n| Choice::VerdictArrives(side(n)), 16),
    (|n| Choice::PersonDecides(side(n)), 2),
    (|n| Choice::Restart(side(n)), 2),
    (|n| Choice::ArbiterBack(side(n)), 4),
    (|n| Choice::Heal(side(n)), 4),
];

const FAULTS: [(Make, u64); 17] = [
    (|n| Choice::ClockRunsAhead(side(n)), 2),
    (|_| Choice::ChannelTimeout, 2),
    (|n| Choice::Crash(Side::Primary, keep(n)), 2),
    (|n| Choice::Crash(Side::Standby, keep(n)), 1),
    (|n| Choice::CutLink(keep(n)), 1),
    (|n| Choice::CutLane(Lane::of(n >> 4), keep(n)), 2),
    (|n| Choice::Block(side(n)), 2),
    (|n| Choice::Swallow(Lane::of(n)), 1),
    (|_| Choice::FailCommit, 1),
    (|n| Choice::FailApply(n as u8), 1),
    (|_| Choice::StandbyFails, 1),
    (|_| Choice::PrimaryFails, 1),
    (|_| Choice::Stop, 1),
    (|_| Choice::ShutDown, 1),
    (|_| Choice::GuestLost, 1),
    (|_| Choice::HandOver, 4),
    (|n| Choice::ArbiterAway(side(n)), 2),
];

const KINDS: usize = ORDINARY.len() + DECIDING.len() + FAULTS.len();

/// Draws the choices of one seed.
pub(crate) struct Source {
    random: Random,
    /// For each kind the sum of its weight and of those before it.
    bounds: [u64; KINDS],
    pub(crate) setup: Setup,
    /// How many steps the schedule has.
    pub(crate) steps: u64,
}

impl Source {
    pub(crate) fn new(seed: u64) -> Source {
        let mut random = Random::new(seed);
        let setup = Setup {
            depth: 1 + random.below(4) as u32,
            manual: random.below(5) == 0,
            heals: random.below(2) == 0,
            away: [None, None, Some(Side::Primary), Some(Side::Standby)][random.below(4) as usize],
        };
        let steps = 40 + random.below(360);
        let storm = [1, 1, 2, 8][random.below(4) as usize];
        let mut sum = 0;
        let mut bounds = [0; KINDS];
        for (kind, (bound, (_, weight))) in bounds.iter_mut().zip(kinds()).enumerate() {
            sum += weight
                * if kind < KINDS - FAULTS.len() {
                    [4, 16, 16, 16, 64][random.below(5) as usize]
                } else {
                    storm * random.below(2)
                };
            *bound = sum;
        }
        Source { random, bounds, setup, steps }
    }

    pub(crate) fn next(&mut self) -> Choice {
        let drawn = self.random.below(self.bounds[KINDS - 1]);
        let kind = self.bounds.iter().position(|&bound| drawn < bound).unwrap_or(0);
        let argument = self.random.next() >> 16;
        kinds().nth(kind).map_or(Choice::Copied, |(make, _)| make(argument))
    }
}

fn kinds() -> impl Iterator<Item = &'static (Make, u64)> {
    ORDINARY.iter().chain(&DECIDING).chain(&FAULTS)
}
