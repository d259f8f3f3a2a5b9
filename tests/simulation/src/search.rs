//! Running seeds, replaying schedules, and making a failing one short.

use crate::breaks::Break;
use crate::promise::{Promise, Violation};
use crate::schedule::{Choice, Setup, Source};
use crate::world::World;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A schedule that breaks a promise, with the shortest one found that breaks the same.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed; it replays the whole schedule.
    pub seed: u64,
    /// The step of the whole schedule after which the promise was broken; `None`: once everything had settled.
    pub step: Option<usize>,
    /// The deliberate break, if one was planted.
    pub plant: Option<Break>,
    /// What broke, in the short schedule.
    pub violation: Violation,
    /// What does not change during the schedule.
    pub setup: Setup,
    /// The short schedule.
    pub schedule: Vec<Choice>,
    /// What happens in it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { promise, what } = &self.violation;
        match self.step {
            Some(step) => writeln!(f, "Seed {} breaks {promise} at step {step}:", self.seed)?,
            None => writeln!(f, "Seed {} breaks {promise} after its last step:", self.seed)?,
        }
        writeln!(f, "  {what}")?;
        writeln!(f, "The shortest schedule found has {} steps, with {:?}:", self.schedule.len(), self.setup)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "Replay it: cargo run -p aventine-simulation -- --seed {}", self.seed)?;
        self.plant.map_or(Ok(()), |plant| write!(f, " --break {plant:?}"))
    }
}

/// How schedules ended: what the search has really been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Schedules.
    pub schedules: u64,
    /// Steps in them.
    pub steps: u64,
    /// Sessions that began.
    pub sessions: u64,
    /// Epochs committed in the last session of each.
    pub epochs: u64,
    /// Takeovers, the planned ones included.
    pub taken_over: u64,
    /// Handovers that the standby carried out.
    pub handed_over: u64,
    /// The arbiter gave a session to the primary.
    pub kept: u64,
    /// The standby heard why protection ended.
    pub told: u64,
    /// The standby disarmed itself because of a failure.
    pub renounced: u64,
    /// An application failed half-way.
    pub half_applied: u64,
}

impl Coverage {
    fn count(&mut self, world: &World, steps: usize) {
        let flag = u64::from;
        self.schedules += 1;
        self.steps += steps as u64;
        self.sessions += world.sessions as u64;
        self.epochs += world.truth.committed.0;
        self.taken_over += world.takeovers;
        self.handed_over += world.handovers;
        self.kept += flag(world.arbiter.kept());
        self.told += flag(world.truth.standby_told);
        self.renounced += flag(world.truth.renounced && world.truth.end.is_none());
        self.half_applied += flag(world.truth.half_applied);
    }

    fn add(&mut self, other: Coverage) {
        self.schedules += other.schedules;
        self.steps += other.steps;
        self.sessions += other.sessions;
        self.epochs += other.epochs;
        self.taken_over += other.taken_over;
        self.handed_over += other.handed_over;
        self.kept += other.kept;
        self.told += other.told;
        self.renounced += other.renounced;
        self.half_applied += other.half_applied;
    }
}

/// Runs the schedule of `seed`, with a deliberate break if one is named; a failure comes with its short schedule.
pub fn run(seed: u64, plant: Option<Break>) -> Option<Failure> {
    run_counted(seed, plant, &mut Coverage::default())
}

fn run_counted(seed: u64, plant: Option<Break>, coverage: &mut Coverage) -> Option<Failure> {
    let mut source = Source::new(seed);
    let mut world = World::new(source.setup, plant, false);
    let mut schedule = Vec::with_capacity(source.steps as usize);
    // Choices that are not possible are not part of the schedule, but they cost time.
    for _ in 0..16 * source.steps {
        let choice = source.next();
        if world.step(choice) {
            schedule.push(choice);
        }
        if world.violation.is_some() || schedule.len() as u64 == source.steps {
            break;
        }
    }
    let step = world.violation.is_some().then_some(schedule.len());
    if step.is_none() {
        world.settle();
    }
    coverage.count(&world, schedule.len());
    let found = world.violation.take()?;
    let schedule = shrink(source.setup, plant, schedule, found.promise);
    let (violation, trace) = replay(source.setup, plant, &schedule, true);
    Some(Failure {
        seed,
        step,
        plant,
        violation: violation.unwrap_or(found),
        setup: source.setup,
        schedule,
        trace,
    })
}

/// Makes exactly these choices, then lets everything settle; answers what broke, and what happened if asked to.
fn replay(
    setup: Setup,
    plant: Option<Break>,
    schedule: &[Choice],
    traced: bool,
) -> (Option<Violation>, Vec<String>) {
    let mut world = World::new(setup, plant, traced);
    for &choice in schedule {
        world.step(choice);
        if world.violation.is_some() {
            break;
        }
    }
    if world.violation.is_none() {
        world.settle();
    }
    (world.violation, world.trace.unwrap_or_default())
}

/// Delta debugging: takes away ever smaller parts for as long as the same promise stays broken.
fn shrink(setup: Setup, plant: Option<Break>, mut schedule: Vec<Choice>, promise: Promise) -> Vec<Choice> {
    let breaks = |s: &[Choice]| replay(setup, plant, s, false).0.is_some_and(|v| v.promise == promise);
    let mut part = schedule.len().div_ceil(2).max(1);
    loop {
        let before = schedule.len();
        let mut at = 0;
        while at < schedule.len() {
            let end = (at + part).min(schedule.len());
            let without: Vec<_> = schedule[..at].iter().chain(&schedule[end..]).copied().collect();
            if breaks(&without) {
                schedule = without;
            } else {
                at = end;
            }
        }
        match (part, schedule.len() < before) {
            (1, false) => return schedule,
            (1, true) => {}
            _ => part = part.div_ceil(2),
        }
    }
}

/// Runs `seeds` on `threads` threads until one fails. The failure with the lowest seed of those found is answered.
pub fn search(seeds: Range<u64>, plant: Option<Break>, threads: usize) -> (Coverage, Option<Failure>) {
    const BATCH: u64 = 256;
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let found = Mutex::new((Coverage::default(), None::<Failure>));
    let work = || {
        let mut coverage = Coverage::default();
        let mut failure = None;
        while failure.is_none() && !failed.load(Ordering::Relaxed) {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= seeds.end {
                break;
            }
            let batch = start..(start + BATCH).min(seeds.end);
            failure = batch.into_iter().find_map(|seed| run_counted(seed, plant, &mut coverage));
        }
        failed.fetch_or(failure.is_some(), Ordering::Relaxed);
        let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.0.add(coverage);
        let lowest = |f: &Failure| found.1.as_ref().is_none_or(|other| f.seed < other.seed);
        if failure.as_ref().is_some_and(lowest) {
            found.1 = failure;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
