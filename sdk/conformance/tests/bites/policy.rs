//! Epoch policies.

use crate::{Broken, HASTE, expect_bites};
use aventine_api::{EpochPolicy, EpochStats, Host};
use aventine_conformance::policy::{PolicyBench, rules};
use std::cell::Cell;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What is wrong with a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    PausesAnIdleGuestAtOnce,
    WaitsLongForASlowLink,
    DividesByTheCommit,
    AddsUpWithoutALimit,
    DoublesUnderLoad,
    Sleeps,
}

/// The rule that each fault breaks.
const BROKEN: Broken<Fault, 6> = [
    (Fault::PausesAnIdleGuestAtOnce, "leaves_the_guest_time"),
    (Fault::WaitsLongForASlowLink, "comes_to_an_end"),
    (Fault::DividesByTheCommit, "begins_without_a_past"),
    (Fault::AddsUpWithoutALimit, "any_numbers_are_answered"),
    (Fault::DoublesUnderLoad, "does_not_run_away"),
    (Fault::Sleeps, "answers_at_once"),
];

struct Adapts {
    fault: Fault,
    interval: Duration,
}

const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(500);

impl EpochPolicy for Adapts {
    fn interval(&mut self, last: &EpochStats) -> Duration {
        match self.fault {
            Fault::PausesAnIdleGuestAtOnce if last.dirty_pages == 0 => return Duration::ZERO,
            Fault::WaitsLongForASlowLink => return (last.commit * 100).max(SHORTEST),
            Fault::DividesByTheCommit => {
                return Duration::from_micros(1 + last.dirty_pages / last.commit.as_micros() as u64);
            }
            Fault::AddsUpWithoutALimit => return (last.pause + last.commit).clamp(SHORTEST, LONGEST),
            Fault::Sleeps => thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
        let is_loaded = last.in_flight > 4 || last.pause.saturating_mul(4) > self.interval;
        self.interval = match is_loaded {
            true => self.interval.saturating_mul(2),
            false => self.interval / 2,
        };
        if self.fault != Fault::DoublesUnderLoad {
            self.interval = self.interval.clamp(SHORTEST, LONGEST);
        }
        self.interval
    }
}

thread_local! {
    /// What is wrong with the policies that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Desk<const HASTY: bool>;

impl<const HASTY: bool> PolicyBench for Desk<HASTY> {
    const PATIENCE: Duration = if HASTY { HASTE } else { Duration::from_secs(60) };

    fn make(_: Arc<dyn Host>) -> Box<dyn EpochPolicy> {
        Box::new(Adapts { fault: FAULT.get(), interval: Duration::from_millis(20) })
    }
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    expect_bites(
        [rules::<Desk<false>>(), rules::<Desk<true>>()],
        module_path!(),
        &BROKEN,
        Fault::None,
        &FAULT,
    );
}
