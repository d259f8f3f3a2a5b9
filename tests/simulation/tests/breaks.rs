//! Every deliberate break is found, under the promise that it breaks, and its schedule becomes short.

use aventine_simulation::{Break, Promise, search};

/// Every break is found within as many schedules.
const SCHEDULES: u64 = 20_000;

#[test]
fn every_break_is_found_under_the_promise_it_breaks() {
    for &plant in Break::ALL {
        let (_, failure) = search(0..SCHEDULES, Some(plant), 1);
        let Some(failure) = failure else { panic!("{plant:?} is not found") };
        assert_eq!(
            failure.violation.promise,
            plant.promise(),
            "{plant:?} is found by another name: {failure}"
        );
        assert!(failure.schedule.len() <= 50, "{plant:?} is not made short: {failure}");
        let report = failure.to_string();
        let line = format!("Seed {} breaks {}", failure.seed, plant.promise());
        assert!(report.starts_with(&line), "{report}");
        assert!(report.ends_with(&format!("--seed {} --break {plant:?}", failure.seed)), "{report}");
    }
}

#[test]
fn every_promise_has_a_break() {
    for promise in Promise::ALL {
        assert!(Break::ALL.iter().any(|b| b.promise() == promise), "{promise} has none");
    }
}
