//! The rules of policies, and what this one says, without an engine.

use aventine_api::{
    Epoch, EpochPolicy, EpochStats, Factory, Host, Kind, Metric, OpenEpoch, PluginEntry, PluginError, Side,
};
use aventine_conformance::form::{Form, Native, context};
use aventine_conformance::policy::PolicyBench;
use aventine_policy_output as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Default)]
struct Engine(Arc<AtomicU64>);

impl Host for Engine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
    fn metric(&self, name: &str, _: &str) -> Arc<dyn Metric> {
        assert_eq!(name, "ended_for_output_total");
        Arc::new(self.clone())
    }
}

impl Metric for Engine {
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

fn entry() -> &'static PluginEntry {
    Native::entry(Kind::Policy, "output")
}

fn make(text: &str, host: Arc<dyn Host>) -> Box<dyn EpochPolicy> {
    let Factory::Policy(make) = entry().factory else { panic!("a policy") };
    make(text, context(Kind::Policy, Path::new("/nonexistent"), Side::Primary, host)).unwrap()
}

fn policy(text: &str, engine: &Engine) -> Box<dyn EpochPolicy> {
    make(text, Arc::new(engine.clone()))
}

struct Bench;

impl PolicyBench for Bench {
    fn make(host: Arc<dyn Host>) -> Box<dyn EpochPolicy> {
        make("", host)
    }
}

aventine_conformance::policy!(Bench);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn open(age: u64, held_frames: u64) -> OpenEpoch {
    OpenEpoch { age: ms(age), held_frames, held_bytes: held_frames * 60 }
}

#[test]
fn an_epoch_ends_when_output_waits_and_not_before_its_shortest_length() {
    let engine = Engine::default();
    let mut policy = policy("longest = '50ms'\nshortest = '3ms'", &engine);
    assert_eq!(policy.interval(&EpochStats::default()), ms(50));
    assert_eq!(policy.again(&open(0, 0)), Some(ms(3)), "nothing is held");
    assert_eq!(policy.again(&open(3, 0)), Some(ms(3)), "still nothing");
    assert_eq!(policy.again(&open(6, 2)), Some(Duration::ZERO), "output waits");
    policy.interval(&EpochStats::default());
    // Those two wait for the standby: another epoch does not help them.
    assert_eq!(policy.again(&open(1, 2)), Some(ms(2)));
    assert_eq!(policy.again(&open(3, 2)), Some(ms(3)));
    assert_eq!(policy.again(&open(6, 0)), Some(ms(3)), "they have left");
    assert_eq!(policy.again(&open(9, 1)), Some(Duration::ZERO));
    assert_eq!(engine.0.load(Ordering::Relaxed), 2);
}

#[test]
fn output_that_comes_before_the_shortest_length_waits_for_it() {
    let mut policy = policy("", &Engine::default());
    assert_eq!(policy.interval(&EpochStats::default()), ms(100));
    assert_eq!(policy.again(&open(0, 0)), Some(ms(2)));
    assert_eq!(policy.again(&open(1, 5)), Some(ms(1)));
    let almost = OpenEpoch { age: Duration::from_micros(1950), ..open(0, 5) };
    assert_eq!(policy.again(&almost), Some(Duration::from_micros(100)), "the engine asks no sooner");
    assert_eq!(policy.again(&open(2, 5)), Some(Duration::ZERO));
}

#[test]
fn keys_are_checked_at_their_place_and_against_each_other() {
    for (text, path, says) in [
        ("longest = '100'", "longest", "is not a duration"),
        ("longest = '11s'", "longest", "out of range"),
        ("shortest = '10us'", "shortest", "out of range"),
        ("longest = '5ms'\nshortest = '6ms'", "shortest", "cannot be longer"),
    ] {
        let error = (entry().validate)(text).unwrap_err();
        assert_eq!(error.path, [path], "{text}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!((entry().validate)("longest = '2ms'").is_ok());
    assert!((entry().schema)().contains("\"shortest\""));
}
