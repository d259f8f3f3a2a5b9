//! Stall: a link that is alive, as its heartbeats show, but on which checkpoints come to nothing.
//!
//! Output is held until the acknowledgement, so a bulk channel that swallows what it is given would mute the guest for
//! ever. The bound is wide, because a standby may be busy with a large epoch, and like detection it counts only time
//! during which this side was awake.

use crate::silence::{Heard, Silence};
use aventine_api::Epoch;
use std::time::{Duration, Instant};

/// How many detection times a checkpoint may take without any progress.
pub(crate) const STALL_LIMIT: u32 = 10;

/// What moves while all is well.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) acknowledged: Epoch,
    pub(crate) bytes: u64,
}

/// The detector of one link.
pub(crate) struct Stall {
    last: Progress,
    moved: Heard,
    silence: Silence,
}

impl Stall {
    pub(crate) fn new(heartbeat: Duration, detection: Duration, now: Instant) -> Stall {
        let moved = Heard::new(now);
        let silence = Silence::new(moved.clone(), heartbeat, detection * STALL_LIMIT, now);
        Stall { last: Progress::default(), moved, silence }
    }

    /// Called as often as [`Silence::tick`]; `true` when an epoch is in flight and nothing has moved for too long.
    pub(crate) fn tick(&mut self, in_flight: bool, progress: Progress, now: Instant) -> bool {
        if !in_flight || progress != self.last {
            self.last = progress;
            self.moved.set(now);
        }
        self.silence.tick(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_epoch_without_progress_counts() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut stall = Stall::new(ms(100), ms(100), start);
        let mut now = start;
        let mut ticks = |in_flight, bytes, count: u32| {
            (0..count).any(|_| {
                now += ms(100);
                stall.tick(in_flight, Progress { acknowledged: Epoch(1), bytes }, now)
            })
        };
        assert!(!ticks(false, 0, 50), "nothing is in flight");
        assert!(!ticks(true, 1, 10));
        assert!(!ticks(true, 2, 10), "bytes move");
        assert!(ticks(true, 2, 1));
    }
}
