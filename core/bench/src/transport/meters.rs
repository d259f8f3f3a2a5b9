//! What a plugin counts itself: its threads are not those that call it.

use aventine_api::{Epoch, Host, Metric, PluginError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const GIB: u128 = 1 << 30;

/// The host of both sides. Nobody asks for anything here.
#[derive(Default)]
pub(super) struct Meters {
    metrics: Mutex<HashMap<String, Arc<Value>>>,
    /// What was counted when it was last asked for.
    before: Mutex<Before>,
}

#[derive(Default)]
struct Before {
    bytes: u128,
    sending: Duration,
    receiving: Duration,
}

#[derive(Default)]
struct Value(AtomicU64);

impl Metric for Value {
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl Host for Meters {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}

    fn metric(&self, name: &str, _: &str) -> Arc<dyn Metric> {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(metrics.entry(name.to_owned()).or_default()) as Arc<dyn Metric>
    }
}

impl Meters {
    /// Processor time that a plugin says it took for the last `bytes`, sending and receiving; all its bytes must be asked about.
    pub(super) fn of_last(&self, bytes: u64) -> (Duration, Duration) {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.bytes += u128::from(bytes);
        // Both figures are averages from the beginning.
        let so_far = |name| {
            let average = metrics.get(name).map_or(0, |value| value.0.load(Ordering::Relaxed));
            Duration::from_micros((u128::from(average) * before.bytes / GIB) as u64)
        };
        let (sending, receiving) = (so_far("send_cpu_us_per_gib"), so_far("recv_cpu_us_per_gib"));
        let last = (sending.saturating_sub(before.sending), receiving.saturating_sub(before.receiving));
        (before.sending, before.receiving) = (sending, receiving);
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_give_what_the_last_bytes_took() {
        let meters = Meters::default();
        let [send, recv] = ["send_cpu_us_per_gib", "recv_cpu_us_per_gib"].map(|name| meters.metric(name, ""));
        let set = |send_us, recv_us| {
            send.set(send_us);
            recv.set(recv_us);
            meters.of_last(1 << 30)
        };
        assert_eq!(set(300, 500), (Duration::from_micros(300), Duration::from_micros(500)));
        assert_eq!(set(250, 500), (Duration::from_micros(200), Duration::from_micros(500)));
    }
}
