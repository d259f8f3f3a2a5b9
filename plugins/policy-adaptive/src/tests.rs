//! The rule against a link and guests of three kinds, in the engine's order of things, without an engine.

use super::*;
use aventine_api::Epoch;
use std::sync::Mutex;

#[test]
fn the_bounds_are_in_order() {
    let ms = Duration::from_millis;
    let bounds = |text| Bounds::parse(text).map_err(|e| e.path.join("."));
    let defaults = Bounds { shortest: ms(10), latency: ms(50), longest: ms(500) };
    assert_eq!(bounds(""), Ok(defaults));
    assert_eq!(bounds("latency = '10ms'"), Ok(Bounds { latency: ms(10), ..defaults }));
    for (text, key) in [
        ("shortest = '2s'", "shortest"),
        ("shortest = '60ms'", "latency"),
        ("latency = '600ms'", "longest"),
        ("longest = '11s'", "longest"),
        ("longest = '40ms'", "longest"),
    ] {
        assert_eq!(bounds(text), Err(key.to_owned()), "{text}");
    }
    assert!(Bounds::parse("interval = '25ms'").is_err());
}

/// A clock that is set.
#[derive(Default)]
struct Clock(Mutex<Duration>);

impl Host for Clock {
    fn request_epoch(&self) {}

    fn staged(&self, _: Epoch) {}

    fn failed(&self, error: PluginError) {
        panic!("{error}");
    }

    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

/// Pages a second that the link carries.
const LINK: f64 = 10_000.0;
/// What a checkpoint takes beside its pages: on the wire and back, and of the guest's time.
const ROUND: f64 = 0.002;
const PAUSE: f64 = 0.001;

/// How a guest writes.
#[derive(Clone, Copy, Debug)]
enum Writes {
    /// A page never written before in the epoch, so many times a second.
    Fresh(f64),
    /// One of so many pages, at random, so many times a second.
    Hot(f64, f64),
    /// Fresh pages at this rate for a fifth of each half of a second that it runs, and a hundredth of it else.
    Bursts(f64),
}

impl Writes {
    /// Pages that are dirty after a run from `from` to `to`, in seconds of the guest's time.
    fn dirty(self, from: f64, to: f64) -> u64 {
        let pages = match self {
            Writes::Fresh(rate) => rate * (to - from),
            Writes::Hot(pages, rate) => pages * (1.0 - (-rate * (to - from) / pages).exp()),
            Writes::Bursts(rate) => {
                let until = |t: f64| {
                    let (whole, part) = ((t / 0.5).floor(), t % 0.5);
                    let burst = whole * 0.1 + part.min(0.1);
                    burst * rate + (t - burst) * rate / 100.0
                };
                until(to) - until(from)
            }
        };
        pages.round() as u64
    }
}

/// What an epoch was.
#[derive(Clone, Copy, Debug)]
struct Was {
    ran: f64,
    /// From the start of the epoch to its acknowledgement: the longest that anything said in it waited.
    waited: f64,
    /// Without work for the link, before it.
    idle: f64,
}

/// A guest for a minute, and the share of the time that it ran.
fn minute(policy: &mut Adaptive, clock: &Clock, writes: Writes) -> (Vec<Was>, f64) {
    let (secs, time) = (|d: Duration| d.as_secs_f64(), Duration::from_secs_f64);
    let (mut resumed, mut paused, mut ran) = (0.0, 0.0, 0.0);
    // Sealed, sent, acknowledged.
    let mut epochs: Vec<[f64; 3]> = Vec::new();
    let (mut all, mut last, mut next) = (Vec::new(), EpochStats::default(), Duration::ZERO);
    while resumed < 60.0 {
        // The engine's rule: one waits behind the one that is being sent, and no more.
        let room = epochs.iter().rev().nth(1).map_or(0.0, |e| e[1]);
        let (mut age, mut must_end) = (Duration::ZERO, f64::MAX);
        while let Some(wait) = policy.again(&OpenEpoch { age, ..OpenEpoch::default() }) {
            if wait.is_zero() {
                must_end = paused + secs(age);
                break;
            }
            age += wait;
        }
        let due = (paused + secs(next)).max(resumed);
        let end = due.max(room).min(must_end.max(resumed));
        let run = end - resumed;
        let pages = writes.dirty(ran, ran + run);
        ran += run;
        let until = end.max(room) + PAUSE;
        let begun = epochs.last().map_or(until, |e| e[1].max(until));
        let idle = epochs.last().map_or(0.0, |e| begun - e[1]);
        let sent = begun + pages as f64 / LINK;
        epochs.push([end, sent, sent + ROUND]);
        all.push(Was { ran: run, waited: sent + ROUND - resumed, idle });
        let acknowledged = epochs.iter().rev().find(|e| e[2] <= until);
        last.in_flight = epochs.iter().filter(|e| e[2] > until).count() as u32;
        last.commit = acknowledged.map_or(last.commit, |e| time(e[2] - e[0]));
        (last.pause, last.dirty_pages) = (time(until - end), pages);
        (paused, resumed) = (end, until);
        *clock.0.lock().unwrap() = time(resumed);
        next = policy.interval(&last);
    }
    (all, ran / resumed)
}

fn simulate(writes: Writes) -> (Bounds, Vec<Was>, f64) {
    let bounds = Bounds::parse("").unwrap();
    let clock = Arc::new(Clock::default());
    let mut policy = Adaptive::new(bounds, Arc::clone(&clock) as Arc<dyn Host>);
    let (all, progress) = minute(&mut policy, &clock, writes);
    for was in &all[1..] {
        let range = bounds.shortest.as_secs_f64() - 1e-6..=bounds.longest.as_secs_f64() + 1e-6;
        assert!(range.contains(&was.ran), "{writes:?}: {was:?}");
    }
    (bounds, all, progress)
}

/// The smallest and the largest in the second half.
fn settled(all: &[Was], what: impl Fn(&Was) -> f64) -> (f64, f64) {
    let half = all[all.len() / 2..].iter().map(what);
    half.fold((f64::MAX, 0.0), |(least, most), x| (least.min(x), most.max(x)))
}

#[test]
fn while_little_is_written_epochs_are_short() {
    for writes in [Writes::Fresh(0.0), Writes::Fresh(LINK / 20.0), Writes::Hot(50.0, LINK)] {
        let (bounds, all, progress) = simulate(writes);
        let (least, most) = settled(&all, |was| was.ran);
        assert!(most - least < 1e-3 && most < 2.0 * bounds.shortest.as_secs_f64(), "{writes:?}: {most}");
        assert!(settled(&all, |was| was.waited).1 < bounds.latency.as_secs_f64(), "{writes:?}");
        assert!(progress > 0.85, "{writes:?}: {progress}");
    }
}

#[test]
fn a_guest_that_writes_more_than_the_link_carries_gets_the_links_share() {
    for times in [1.2, 3.0, 10.0] {
        let (bounds, all, progress) = simulate(Writes::Fresh(times * LINK));
        assert!(progress >= 0.9 / times, "{times}: {progress}");
        let (least, most) = settled(&all, |was| was.ran);
        assert!(most <= 1.1 * least, "{times}: {least} to {most} do not settle");
        let longest = bounds.longest.as_secs_f64();
        let waited = all.iter().map(|was| was.waited).fold(0.0, f64::max);
        assert!(waited <= 3.3 * longest, "{times}: {waited}");
        assert!(settled(&all, |was| was.idle).1 < 2.0 * PAUSE, "{times}: the link had nothing to do");
    }
}

/// Pages that are written again while the link is busy are sent once: the guest is not slowed down.
#[test]
fn a_hot_set_that_the_link_carries_in_time_costs_nothing() {
    let bounds = Bounds::parse("").unwrap();
    for share in [0.1, 0.5, 0.9] {
        let pages = share * LINK * bounds.longest.as_secs_f64();
        let (_, all, progress) = simulate(Writes::Hot(pages, 20.0 * LINK));
        assert!(progress > 0.9, "{share}: {progress}");
        let (least, most) = settled(&all, |was| was.ran);
        assert!(most <= 1.5 * least, "{share}: {least} to {most} do not settle");
    }
}

#[test]
fn a_burst_is_neither_lost_in_nor_remembered_for_long() {
    for times in [2.0, 8.0, 20.0] {
        let (bounds, all, progress) = simulate(Writes::Bursts(times * LINK));
        // A fifth of the guest's time at the full rate.
        let share = (1.0 / (times * (0.2 + 0.8 / 100.0))).min(1.0);
        assert!(progress >= 0.9 * share.min(0.95), "{times}: {progress} of {share}");
        // A burst begins in an epoch that was planned without it, and may be the whole of it: what it takes the link, twice.
        let (longest, burst) = (bounds.longest.as_secs_f64(), 0.1 * times);
        let most = settled(&all, |was| was.waited).1;
        assert!(most <= 3.0 * longest + 2.0 * burst, "{times}: {most}");
    }
}
