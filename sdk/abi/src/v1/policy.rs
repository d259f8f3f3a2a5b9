//! The epoch policy's facade.

use super::answer::Answer;
use super::edge::{Exported, Reporter};
use super::host::nanos;
use abi_stable::std_types::{RBox, ROption};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{EpochPolicy, EpochStats, Host, OpenEpoch};
use std::sync::Arc;
use std::time::Duration;

/// [`EpochStats`]; times in nanoseconds.
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct EpochStatsV1 {
    pub pause: u64,
    pub dirty_pages: u64,
    pub in_flight: u32,
    pub commit: u64,
}

/// [`OpenEpoch`]; the time in nanoseconds.
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct OpenEpochV1 {
    pub age: u64,
    pub held_frames: u64,
    pub held_bytes: u64,
}

/// [`EpochPolicy`]; times in nanoseconds.
#[sabi_trait]
pub trait PolicyV1: Send {
    fn interval(&mut self, last: EpochStatsV1) -> Answer<u64>;
    fn again(&mut self, open: OpenEpochV1) -> Answer<ROption<u64>>;
}

pub(super) type PolicyBox = PolicyV1_TO<'static, RBox<()>>;

impl PolicyV1 for Exported<Box<dyn EpochPolicy>> {
    fn interval(&mut self, last: EpochStatsV1) -> Answer<u64> {
        let last = EpochStats {
            pause: Duration::from_nanos(last.pause),
            dirty_pages: last.dirty_pages,
            in_flight: last.in_flight,
            commit: Duration::from_nanos(last.commit),
        };
        self.call(|p| Ok(nanos(p.interval(&last))))
    }

    fn again(&mut self, open: OpenEpochV1) -> Answer<ROption<u64>> {
        let OpenEpochV1 { age, held_frames, held_bytes } = open;
        let open = OpenEpoch { age: Duration::from_nanos(age), held_frames, held_bytes };
        self.call(|p| Ok(p.again(&open).map(nanos).into()))
    }
}

pub(super) struct ImportedPolicy {
    object: PolicyBox,
    reporter: Reporter,
    last: u64,
}

impl ImportedPolicy {
    pub(super) fn new(object: PolicyBox, host: &Arc<dyn Host>) -> ImportedPolicy {
        ImportedPolicy { object, reporter: Reporter::new(host), last: nanos(Duration::from_secs(1)) }
    }
}

impl EpochPolicy for ImportedPolicy {
    fn interval(&mut self, last: &EpochStats) -> Duration {
        let last = EpochStatsV1 {
            pause: nanos(last.pause),
            dirty_pages: last.dirty_pages,
            in_flight: last.in_flight,
            commit: nanos(last.commit),
        };
        self.last = self.reporter.or(self.object.interval(last), self.last);
        Duration::from_nanos(self.last)
    }

    fn again(&mut self, open: &OpenEpoch) -> Option<Duration> {
        let &OpenEpoch { age, held_frames, held_bytes } = open;
        let answer = self.object.again(OpenEpochV1 { age: nanos(age), held_frames, held_bytes });
        self.reporter.or(answer, ROption::RNone).into_option().map(Duration::from_nanos)
    }
}
