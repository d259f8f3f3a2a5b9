//! A policy, and the engine that asks it.

use super::PolicyBench;
use crate::form::Ears;
use crate::suite::{Seen, calmly};
use aventine_api::{EpochPolicy, EpochStats, Host, LONGEST_EPOCH};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Desk<B> {
    policy: Box<dyn EpochPolicy>,
    ears: Arc<Ears>,
    bench: PhantomData<B>,
}

impl<B: PolicyBench> Desk<B> {
    pub(super) fn start(_module: &'static str) -> Desk<B> {
        let ears = Arc::new(Ears::default());
        Desk { policy: B::make(Arc::clone(&ears) as Arc<dyn Host>), ears, bench: PhantomData }
    }

    /// Asks after an epoch with these numbers. A policy that panics is told by itself, or by its adapter.
    pub(super) fn ask(&mut self, last: &EpochStats) -> Result<Duration, String> {
        let answer = calmly("`interval`", || self.policy.interval(last));
        let answer = answer.map_err(|why| format!("after {last:?}, {why}"))?;
        match self.ears.failure() {
            Some(failure) => Err(format!("after {last:?}, a failure was reported: {failure}")),
            None => Ok(answer),
        }
    }

    pub(super) fn expect_time(&mut self, last: &EpochStats) -> Seen {
        match self.ask(last)? {
            Duration::ZERO => Err(format!("after {last:?}, the interval is zero")),
            _ => Ok(()),
        }
    }

    pub(super) fn expect_end(&mut self, last: &EpochStats) -> Seen {
        let interval = self.ask(last)?;
        if interval > LONGEST_EPOCH {
            return Err(format!(
                "after {last:?}, the interval is {interval:?}; the most is {LONGEST_EPOCH:?}"
            ));
        }
        Ok(())
    }
}
