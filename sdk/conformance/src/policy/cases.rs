//! The cases. What each rule means is told in the table of [`super::rules`].

use super::PolicyBench;
use super::desk::Desk;
use crate::suite::Seen;
use aventine_api::EpochStats;
use std::time::{Duration, Instant};

/// Numbers as a guest has them: idle, busy, overloaded, over a slow link.
fn plausible() -> impl Iterator<Item = EpochStats> {
    let times = [0, 50, 700, 4_000, 60_000, 2_000_000].map(Duration::from_micros);
    let pages = [0, 1, 100, 13_000, 1 << 24];
    times.into_iter().flat_map(move |pause| {
        times.into_iter().flat_map(move |commit| {
            pages.into_iter().flat_map(move |dirty_pages| {
                [0, 1, 2, 64].map(|in_flight| EpochStats { pause, dirty_pages, in_flight, commit })
            })
        })
    })
}

/// Each number alone and all together, at their ends.
fn extreme() -> impl Iterator<Item = EpochStats> {
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX / 4), Duration::MAX];
    times.into_iter().flat_map(move |pause| {
        times.into_iter().flat_map(move |commit| {
            [0, 1, u64::MAX].into_iter().flat_map(move |dirty_pages| {
                [0, u32::MAX].map(|in_flight| EpochStats { pause, dirty_pages, in_flight, commit })
            })
        })
    })
}

pub(super) fn leaves_the_guest_time<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    plausible().try_for_each(|last| desk.expect_time(&last))
}

pub(super) fn comes_to_an_end<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    plausible().try_for_each(|last| desk.expect_end(&last))
}

pub(super) fn begins_without_a_past<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    let first = EpochStats::default();
    desk.expect_time(&first)?;
    // Captured, and nothing acknowledged yet: there is no commit to go by.
    let second = EpochStats { pause: Duration::from_micros(900), dirty_pages: 80, in_flight: 1, ..first };
    desk.expect_time(&second)?;
    desk.expect_end(&second)
}

pub(super) fn any_numbers_are_answered<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    for last in extreme() {
        desk.expect_time(&last)?;
        desk.expect_end(&last)?;
    }
    Ok(())
}

pub(super) fn does_not_run_away<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    let idle = EpochStats {
        pause: Duration::from_micros(300),
        dirty_pages: 10,
        in_flight: 0,
        ..EpochStats::default()
    };
    let idle = EpochStats { commit: Duration::from_micros(200), ..idle };
    let swamped = EpochStats {
        pause: Duration::from_millis(40),
        dirty_pages: 60_000,
        in_flight: 8,
        commit: Duration::from_millis(900),
    };
    for last in [swamped, idle, swamped, idle] {
        for _ in 0..5_000 {
            desk.expect_time(&last)?;
            desk.expect_end(&last)?;
        }
    }
    Ok(())
}

pub(super) fn answers_at_once<B: PolicyBench>(desk: &mut Desk<B>) -> Seen {
    let began = Instant::now();
    for (number, last) in (1..=1000).zip(plausible().chain(plausible())) {
        desk.ask(&last)?;
        if began.elapsed() > B::PATIENCE {
            return Err(format!("{number} answers took {:?}", began.elapsed()));
        }
    }
    Ok(())
}
