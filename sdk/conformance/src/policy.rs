//! The rules of [`EpochPolicy`].
//!
//! No case knows what a policy is for: whatever it decides must leave the guest time to run and the world a time to hear from it.

mod cases;
mod desk;

use crate::suite::suite;
use aventine_api::{EpochPolicy, Host};
use std::sync::Arc;
use std::time::Duration;

/// Makes an epoch policy.
pub trait PolicyBench: Sized + 'static {
    /// How long a thousand answers may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Makes the policy, as configured for the bench.
    fn make(host: Arc<dyn Host>) -> Box<dyn EpochPolicy>;
}

suite! { $ policy for PolicyBench, policy, by desk;
    leaves_the_guest_time
        "an interval is more than zero: a guest that is paused again at once never runs"
    comes_to_an_end
        "an interval is at most `LONGEST_EPOCH`: what the guest says waits as long, and the engine adds it to the clock"
    begins_without_a_past
        "the first question comes before there is a commit or a dirty page: zeros are no reason to fail"
    any_numbers_are_answered
        "no numbers make a policy panic: it would end the protection of a guest that had a bad moment"
    does_not_run_away
        "however long a load lasts, and whatever follows it, every interval keeps its bounds"
    answers_at_once
        "a policy is asked on the engine's loop: while it waits, nothing is acknowledged and nothing is released"
}
