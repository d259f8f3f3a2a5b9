//! Each rule is broken on purpose, in a plugin that keeps all others, and caught by name.

mod arbiter;
mod codec;
mod network;
mod policy;
mod recorder;
mod transport;

use aventine_conformance::Rule;
use std::cell::Cell;
use std::fmt::Debug;
use std::thread::LocalKey;
use std::time::Duration;

/// How long a bench waits for what a broken plugin never does. A sound one is given all the time that it may need: see
/// [`expect_bites`].
const HASTE: Duration = Duration::from_millis(500);

/// Why a broken plugin fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

/// The rule that each fault breaks, in the order of the rules, each of which has one at least.
type Broken<F, const N: usize> = [(F, &'static str); N];

/// A plugin without a fault (`none`) keeps every rule of the patient bench, each rule has a fault, and the hasty bench catches it.
/// `fault` is what is wrong with the plugins that the benches make from then on.
fn expect_bites<F: Copy + Debug>(
    [patient, hasty]: [Vec<Rule>; 2],
    module: &'static str,
    broken: &[(F, &'static str)],
    none: F,
    fault: &'static LocalKey<Cell<F>>,
) {
    let mut names = broken.iter().map(|b| b.1).collect::<Vec<_>>();
    names.dedup();
    assert_eq!(hasty.iter().map(|r| r.name).collect::<Vec<_>>(), names, "every rule has a fault");
    fault.set(none);
    for rule in patient {
        assert_eq!(rule.check(module), Ok(()), "of a sound plugin");
    }
    for (broken, name) in broken {
        let rule = hasty.iter().find(|r| r.name == *name).expect("every fault has a rule");
        fault.set(*broken);
        let violation = rule.check(module).err();
        let violation = violation.unwrap_or_else(|| panic!("{broken:?} is not caught by {name}"));
        let text = violation.to_string();
        assert!(text.contains(name) && text.contains(rule.meaning), "{text}");
    }
}
