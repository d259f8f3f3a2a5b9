//! Detection: how long the other side has been silent, measured in time during which this side was awake.
//!
//! A host that was itself stopped or starved for a while must not blame the other side for it. So silence is summed
//! up tick by tick, and a tick counts for at most one heartbeat, however late it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set by whoever hears the other side.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<AtomicBool>);

impl Heard {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The detector of one link.
pub(crate) struct Silence {
    heard: Heard,
    heartbeat: Duration,
    limit: Duration,
    silent: Duration,
    last: Instant,
    /// Ticks at which something had been heard.
    signs: u64,
}

impl Silence {
    pub(crate) fn new(heard: Heard, heartbeat: Duration, limit: Duration, now: Instant) -> Silence {
        Silence { heard, heartbeat, limit, silent: Duration::ZERO, last: now, signs: 0 }
    }

    /// How often it wants to be asked, at most.
    pub(crate) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// How many signs of life there were, one a tick at most. Unlike time, they prove that the other side lives.
    pub(crate) fn signs(&self) -> u64 {
        self.signs
    }

    /// How many signs of life a living side gives while a dead one comes to be known as lost.
    pub(crate) fn proof(&self) -> u64 {
        1 + (self.limit.as_nanos() / self.heartbeat.as_nanos().max(1)) as u64
    }

    /// Called at least once a heartbeat; `true` when the other side counts as lost.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.last).min(self.heartbeat);
        self.last = now;
        if self.heard.take() {
            self.silent = Duration::ZERO;
            self.signs += 1;
        } else {
            self.silent += passed;
        }
        self.silent >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_counts_for_one_heartbeat() {
        let (heard, start) = (Heard::default(), Instant::now());
        let ms = Duration::from_millis;
        let mut silence = Silence::new(heard.clone(), ms(50), ms(200), start);
        assert!(!silence.tick(start + ms(5_000)), "this side slept");
        assert!(!silence.tick(start + ms(5_050)));
        assert!(!silence.tick(start + ms(5_100)));
        assert!(silence.tick(start + ms(5_150)));
        assert_eq!((silence.signs(), silence.proof()), (0, 5));
        heard.set();
        assert!(!silence.tick(start + ms(5_200)));
        assert_eq!(silence.signs(), 1);
    }
}
