//! Epoch policy plugin `adaptive`: short epochs while little is written, longer ones where pausing costs much or the link is
//! full, and a guest that is slowed down where it writes more than the link ever carries.
//!
//! ```toml
//! [policy]
//! plugin = "adaptive"
//! shortest = "10ms"    # the guest runs at least that long between two pauses; 1ms to 1s
//! latency = "50ms"     # what an answer may wait, where the link keeps up; `shortest` to 10s
//! longest = "500ms"    # no epoch runs for longer, or holds more than the link carries in that time; `latency` to 10s
//! ```
//! # The rule
//!
//! How long the guest runs in the next epoch is the longest of three, and no more than a limit:
//! - `shortest`;
//! - `PAUSES` times the last pause, so that no more than a part of the guest's time goes into pauses; but an answer waits for
//!   the epoch and its commit, and both together get no longer than `latency` for that;
//! - half of the last commit. By Little's law as many epochs are under way as the commit is longer than the interval, so this
//!   aims at two: one is on the wire and one waits, the link is always busy, and nothing waits for longer.
//!
//! The limit holds what an epoch may weigh. While the link is full, the time between two acknowledgements by the pages
//! acknowledged in it is the link's *pace*, whatever the codec, the standby and the disks add to it. An epoch that ran for `r`
//! and had `x` pages then may run for `r · longest / (x · pace)`: it takes `longest` to send. It is no more than a few times `r`, so that a
//! burst that begins in a quiet time meets a short epoch. Where the link is not ready when
//! the limit is reached, the engine pauses the guest until it is.
//!
//! # Invariants
//!
//! - The guest runs for `shortest` to `longest` between two pauses.
//! - The number of pages of an epoch grows at most in proportion with its length, because pages that are written again are sent
//!   once. So the limit never lets an epoch grow over its weight in one step, unless the guest begins to write faster; and as it
//!   follows from the newest epoch alone, and not from the limit before, nothing swings.
//! - Where the guest writes `k` times what the link carries, each epoch takes the link's whole time, and the guest gets `1/k` of
//!   the processor: no epoch length gives more, unless it writes the same pages again.
//! - An answer waits for its own epoch, for the one before it, and for being sent: three times `longest` at most, and what the
//!   link and the standby take beside. (Where `shortest` alone is too much for the link, three times what that takes.)
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, Context, DurationText, EpochPolicy, EpochStats, ErrorCode, Factory, Host, LONGEST_EPOCH,
    OpenEpoch, PluginEntry, PluginError, parse_config, schema,
};
use serde::Deserialize;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "adaptive",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Epochs as long as the link and the guest need them",
        validate: &|text| Bounds::parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Policy(&|text, context: Context| {
            let bounds = Bounds::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Adaptive::new(bounds, context.host)))
        }),
        upkeep: None,
    }
}

/// How many times as long as it was paused the guest runs, where the latency permits it: nine tenths of its time.
const PAUSES: u32 = 9;
/// How many times as long as the last one an epoch may run: while the link's pace is not known, and then.
const GROWTH: [u32; 2] = [2, 4];
/// Epochs under way that are remembered; no buffer holds more.
const REMEMBERED: usize = 64;
/// The least time after which the engine asks again.
const SOON: Duration = Duration::from_micros(100);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// How long the guest runs at least between two pauses, 1ms to 1s; 10ms if not set.
    #[schemars(with = "Option<DurationText>")]
    shortest: Option<String>,
    /// What a client's answer may wait where the link keeps up with the guest, `shortest` to 10s; 50ms if not set.
    #[schemars(with = "Option<DurationText>")]
    latency: Option<String>,
    /// How long an epoch may run, and how long the link may take to carry it, `latency` to 10s; 500ms if not set. Where the
    /// guest writes more than the link carries, an answer waits for three times as long at most.
    #[schemars(with = "Option<DurationText>")]
    longest: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    shortest: Duration,
    latency: Duration,
    longest: Duration,
}

impl Bounds {
    fn parse(text: &str) -> Result<Bounds, ConfigError> {
        let keys: Keys = parse_config(text)?;
        let [ms, second, most] = [1, 1_000, 10_000].map(Duration::from_millis);
        let read = |key: &str, text: Option<String>, default: &str, range: RangeInclusive<Duration>| {
            Duration::parse_key(&[key], text.as_deref().unwrap_or(default), &range)
        };
        let shortest = read("shortest", keys.shortest, "10ms", ms..=second)?;
        let latency = read("latency", keys.latency, "50ms", ms..=most)?;
        let longest = read("longest", keys.longest, "500ms", ms..=most)?;
        for (key, value, (least_key, least)) in
            [("latency", latency, ("shortest", shortest)), ("longest", longest, ("latency", latency))]
        {
            if value < least {
                let (value, least) = (value.show(), least.show());
                let message = format!("{value} is less than `{least_key}`, which is {least}");
                let help = format!("make `{key}` longer, or `{least_key}` shorter");
                return Err(ConfigError::bad_value(&[key], message, Some(&help)));
            }
        }
        Ok(Bounds { shortest, latency, longest })
    }
}

/// An epoch under way.
struct Sealed {
    at: Duration,
    pages: u64,
}

struct Adaptive {
    bounds: Bounds,
    host: Arc<dyn Host>,
    /// When the guest ran again after the last pause.
    resumed: Duration,
    /// How long that pause was.
    pause: Duration,
    /// Sealed and not acknowledged, as far as is known.
    under_way: VecDeque<Sealed>,
    /// When the last of those before them was acknowledged.
    acknowledged: Duration,
    /// Seconds that the link takes for a page, once it was full for a while.
    pace: Option<f64>,
    /// How long the guest may run in the open epoch.
    limit: Duration,
}

impl Adaptive {
    fn new(bounds: Bounds, host: Arc<dyn Host>) -> Adaptive {
        Adaptive {
            bounds,
            resumed: host.now(),
            host,
            pause: Duration::ZERO,
            under_way: VecDeque::new(),
            acknowledged: Duration::ZERO,
            pace: None,
            limit: bounds.shortest,
        }
    }

    /// Learns the link's pace from what was acknowledged since the last epoch.
    fn learn(&mut self, sealed: Sealed, last: &EpochStats) {
        self.under_way.push_back(sealed);
        let left = (last.in_flight as usize).min(REMEMBERED);
        let count = self.under_way.len().saturating_sub(left);
        let mut done = self.under_way.drain(..count);
        let Some(first) = done.next() else { return };
        let (begun, mut newest, mut pages) = (first.at.max(self.acknowledged), first.at, first.pages);
        for sealed in done {
            newest = sealed.at;
            pages = pages.saturating_add(sealed.pages);
        }
        self.acknowledged = newest.saturating_add(last.commit);
        let busy = self.acknowledged.saturating_sub(begun);
        // What an epoch costs whatever it holds must not count as the pages' cost.
        if busy >= self.bounds.shortest && pages > 0 {
            let pace = busy.as_secs_f64() / pages as f64;
            self.pace = Some(self.pace.map_or(pace, |old| (old + pace) / 2.0));
        }
    }

    /// How long the next epoch may run, after one that `ran` and had `pages`.
    fn limit(&self, ran: Duration, pages: u64) -> Duration {
        let Bounds { shortest, longest, .. } = self.bounds;
        let growth = GROWTH[usize::from(self.pace.is_some())];
        let most = ran.saturating_mul(growth).clamp(shortest, longest);
        let Some(pace) = self.pace else { return most };
        let limit = ran.as_secs_f64() * longest.as_secs_f64() / (pages as f64 * pace);
        // Infinite where nothing was written.
        Duration::try_from_secs_f64(limit).map_or(most, |limit| limit.clamp(shortest, most))
    }
}

impl EpochPolicy for Adaptive {
    fn interval(&mut self, last: &EpochStats) -> Duration {
        let (now, pages) = (self.host.now(), last.dirty_pages);
        let sealed = now.saturating_sub(last.pause);
        let ran = sealed.saturating_sub(self.resumed);
        (self.resumed, self.pause) = (now, last.pause);
        self.learn(Sealed { at: sealed, pages }, last);
        self.limit = self.limit(ran, pages);
        let seldom = last.pause.saturating_mul(PAUSES).min(self.bounds.latency.saturating_sub(last.commit));
        let run = seldom.max(last.commit / 2).max(self.bounds.shortest).min(self.limit);
        run.saturating_add(last.pause).min(LONGEST_EPOCH)
    }

    fn again(&mut self, open: &OpenEpoch) -> Option<Duration> {
        let left = self.limit.saturating_add(self.pause).saturating_sub(open.age);
        Some(if left.is_zero() { left } else { left.max(SOON) })
    }
}

#[cfg(test)]
#[path = "../testing/bench.rs"]
mod bench;

#[cfg(test)]
mod conformance {
    aventine_conformance::policy!(crate::bench::Adaptive<aventine_conformance::form::Native>);
}

#[cfg(test)]
mod tests;
