//! No schedule breaks a promise. `AVENTINE_SCHEDULES=1000000` runs as many.

use aventine_simulation::{Break, run, search};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[test]
fn every_promise_holds_in_every_schedule() {
    let schedules = match std::env::var("AVENTINE_SCHEDULES") {
        Ok(number) => number.parse().expect("AVENTINE_SCHEDULES is a number"),
        Err(_) => 100_000,
    };
    let (coverage, failure) = search(0..schedules, None, threads());
    if let Some(failure) = failure {
        panic!("{failure}");
    }
    assert_eq!(coverage.schedules, schedules);
    // What the schedules do not reach is not tested.
    let share = |count: u64, percent: u64| assert!(count * 100 >= schedules * percent, "{coverage:?}");
    share(coverage.steps, 10_000);
    share(coverage.sessions, 150);
    share(coverage.epochs, 300);
    share(coverage.taken_over, 5);
    share(coverage.kept, 20);
    share(coverage.told, 5);
    share(coverage.renounced, 1);
    share(coverage.half_applied, 1);
}

#[test]
fn a_failing_seed_replays_exactly() {
    let (_, failure) = search(0..10_000, Some(Break::HeartbeatGoesOn), threads());
    let failure = failure.expect("the break is found");
    let again = run(failure.seed, Some(Break::HeartbeatGoesOn)).expect("the seed fails again");
    assert_eq!(failure.to_string(), again.to_string());
    assert!(run(failure.seed, None).is_none(), "without the break the seed keeps every promise");
}
