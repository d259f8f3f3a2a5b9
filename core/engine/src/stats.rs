//! What the engine measures about itself.

use crate::control::{Quantiles, Status};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Shared between the engine, which writes, and the program, which reads.
pub(crate) type Shared = Arc<Mutex<Measured>>;

/// The most recent samples of one figure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    ring: Vec<u32>,
    next: usize,
}

impl Samples {
    const KEPT: usize = 4096;

    pub(crate) fn push(&mut self, value: u64) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        if self.ring.len() < Self::KEPT {
            self.ring.push(value);
        } else {
            self.ring[self.next] = value;
        }
        self.next = (self.next + 1) % Self::KEPT;
    }

    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn quantiles(mut self) -> Quantiles {
        self.ring.sort_unstable();
        let at = |percent: usize| {
            let index = (self.ring.len() * percent).div_ceil(100).saturating_sub(1);
            self.ring.get(index).copied().unwrap_or(0).into()
        };
        Quantiles { p50: at(50), p99: at(99), max: at(100) }
    }
}

/// The status without its quantiles, and the samples they are made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) status: Status,
    pub(crate) pause: Samples,
    pub(crate) commit: Samples,
    pub(crate) scan: Samples,
    pub(crate) copy: Samples,
    pub(crate) room: Samples,
    pub(crate) device: Samples,
    pub(crate) queue: Samples,
    pub(crate) encode: Samples,
    pub(crate) send: Samples,
    pub(crate) standby: Samples,
    pub(crate) receive: Samples,
    pub(crate) disks: Samples,
    pub(crate) apply: Samples,
    pub(crate) dirty: Samples,
}

impl Measured {
    pub(crate) fn into_status(self) -> Status {
        Status {
            pause_us: self.pause.quantiles(),
            commit_us: self.commit.quantiles(),
            scan_us: self.scan.quantiles(),
            copy_us: self.copy.quantiles(),
            room_us: self.room.quantiles(),
            device_us: self.device.quantiles(),
            queue_us: self.queue.quantiles(),
            encode_us: self.encode.quantiles(),
            send_us: self.send.quantiles(),
            standby_us: self.standby.quantiles(),
            receive_us: self.receive.quantiles(),
            disks_us: self.disks.quantiles(),
            apply_us: self.apply.quantiles(),
            dirty_pages: self.dirty.quantiles(),
            ..self.status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_newest_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.clone().quantiles(), Quantiles::default());
        (0..2 * Samples::KEPT as u64).for_each(|v| samples.push(v));
        assert_eq!(samples.clone().quantiles().max, 8191);
        assert_eq!(samples.quantiles().p50, 6143);
        let mut few = Samples::default();
        [5, 1, 3].into_iter().for_each(|v| few.push(v));
        assert_eq!(few.quantiles(), Quantiles { p50: 3, p99: 5, max: 5 });
    }
}
