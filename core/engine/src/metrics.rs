//! The figures that plugins register: [`Host::metric`](aventine_api::Host::metric).

use aventine_api::Metric;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;

/// Most metrics of one plugin.
const MOST: usize = 64;
const NAME_LENGTH: usize = 48;
const HELP_LENGTH: usize = 200;

/// A plugin's figure, as the status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricStatus {
    /// `id` of the plugin's table.
    pub plugin: String,
    /// Its name, which ends with its unit.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// Its value now.
    pub value: u64,
}

/// Every metric of a guest's plugins on this host. One plugin value may follow another under the same id: they share it.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Mutex<Vec<Registered>>>);

struct Registered {
    plugin: String,
    name: String,
    help: String,
    value: Arc<Value>,
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

impl Metrics {
    /// The plugin's metric of this name.
    pub(crate) fn metric(&self, plugin: &str, name: &str, help: &str) -> Arc<dyn Metric> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|m| m.plugin == plugin && m.name == name) {
            return Arc::clone(&known.value) as Arc<dyn Metric>;
        }
        let value = Arc::new(Value::default());
        let full = all.iter().filter(|m| m.plugin == plugin).count() >= MOST;
        if full || !is_name(name) {
            let shown: String = name.chars().take(NAME_LENGTH).collect();
            warn!(plugin, name = ?shown, "a metric cannot be registered: {}", if full { "the plugin has too many" } else { "its name" });
            return value;
        }
        let help = help.chars().filter(|c| !c.is_control()).take(HELP_LENGTH).collect();
        let (plugin, name) = (plugin.to_owned(), name.to_owned());
        all.push(Registered { plugin, name, help, value: Arc::clone(&value) });
        value
    }

    /// All of them, in the order of registration.
    pub(crate) fn status(&self) -> Vec<MetricStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |m: &Registered| MetricStatus {
            plugin: m.plugin.clone(),
            name: m.name.clone(),
            help: m.help.clone(),
            value: m.value.0.load(Ordering::Relaxed),
        };
        all.iter().map(shown).collect()
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_by_plugin_and_name() {
        let metrics = Metrics::default();
        metrics.metric("net0", "ring_bytes", "held\nin the ring").set(7);
        metrics.metric("net0", "ring_bytes", "again").add(2);
        metrics.metric("net1", "ring_bytes", "another").add(1);
        let shown: Vec<_> = metrics.status().into_iter().map(|m| (m.plugin, m.help, m.value)).collect();
        let expected = [("net0", "heldin the ring", 9), ("net1", "another", 1)];
        assert_eq!(shown, expected.map(|(p, h, v)| (p.to_owned(), h.to_owned(), v)));
    }

    #[test]
    fn what_cannot_be_registered_goes_nowhere() {
        let metrics = Metrics::default();
        for bad in ["", "Upper", "with space", &"x".repeat(49), "é"] {
            metrics.metric("disk0", bad, "").add(1);
        }
        (0..100).for_each(|n| metrics.metric("disk0", &format!("m{n}_total"), "").add(1));
        assert_eq!(metrics.status().len(), MOST);
    }
}
