//! Detection: how long the other side has been silent, measured in time during which this side was awake.
//!
//! A host that was itself stopped or starved for a while must not blame the other side for it. So silence is summed
//! up tick by tick, and a tick counts for at most one heartbeat, however late it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The share of the detection time after which the other side is suspected. Of a client that doubles the time between
/// its repetitions, at least one falls between the suspicion and the loss.
const SUSPICION: u32 = 3;

/// Set by whoever hears the other side.
#[derive(Clone)]
pub(crate) struct Heard {
    origin: Instant,
    /// When it was set last: nanoseconds since `origin`, and one; 0 if never.
    last: Arc<AtomicU64>,
}

impl Heard {
    pub(crate) fn new(now: Instant) -> Heard {
        Heard { origin: now, last: Arc::default() }
    }

    pub(crate) fn set(&self, now: Instant) {
        let since = now.saturating_duration_since(self.origin).as_nanos() as u64;
        self.last.store(since + 1, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Instant> {
        let since = self.last.swap(0, Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin + Duration::from_nanos(since))
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

    /// How long the next tick may wait: half a heartbeat, but not past the time at which the other side counts as lost.
    pub(crate) fn next_tick(&self) -> Duration {
        let left = self.limit.saturating_sub(self.silent);
        if left.is_zero() { self.heartbeat / 2 } else { left.min(self.heartbeat / 2) }
    }

    /// Whether the other side has been silent for long enough to prepare for its loss, as of the last tick.
    pub(crate) fn suspects(&self) -> bool {
        self.silent >= self.limit / SUSPICION
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
        let mut since = self.last;
        if let Some(heard) = self.heard.take() {
            since = since.max(heard);
            self.silent = Duration::ZERO;
            self.signs += 1;
        }
        self.silent += now.saturating_duration_since(since).min(self.heartbeat);
        self.last = now;
        self.silent >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_counts_for_one_heartbeat() {
        let start = Instant::now();
        let heard = Heard::new(start);
        let ms = Duration::from_millis;
        let mut silence = Silence::new(heard.clone(), ms(50), ms(200), start);
        assert!(!silence.tick(start + ms(5_000)), "this side slept");
        assert!(!silence.tick(start + ms(5_050)));
        assert!(!silence.tick(start + ms(5_100)));
        assert!(silence.tick(start + ms(5_150)));
        assert_eq!((silence.signs(), silence.proof()), (0, 5));
        heard.set(start + ms(5_190));
        assert!(!silence.tick(start + ms(5_200)));
        assert_eq!(silence.signs(), 1);
    }

    #[test]
    fn silence_begins_at_the_last_sign_of_life() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let heard = Heard::new(start);
        let mut silence = Silence::new(heard.clone(), ms(50), ms(200), start);
        heard.set(start + ms(10));
        assert!(!silence.tick(start + ms(30)));
        assert_eq!(silence.silent, ms(20));
        for (at, suspects) in [(76, false), (77, true), (127, true), (177, true)] {
            assert!(!silence.tick(start + ms(at)));
            assert_eq!(silence.suspects(), suspects, "{at} ms");
        }
        assert_eq!(silence.next_tick(), ms(25));
        assert!(!silence.tick(start + ms(205)));
        assert!(silence.suspects());
        assert_eq!(silence.next_tick(), ms(5), "not later than the limit");
        assert!(silence.tick(start + ms(210)));
    }
}
