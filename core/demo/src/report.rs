//! What the demo tells at its end.

use aventine_engine::Quantiles;
use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

/// What one round showed.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// Epochs committed.
    pub(crate) epochs: u64,
    /// Epochs committed while the client wrote, and for how long that was watched.
    pub(crate) watched: (u64, Duration),
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) broken: bool,
    pub(crate) gap: Duration,
    /// From the standby's decision to the running guest, in microseconds.
    pub(crate) activation: u64,
    pub(crate) pause: Quantiles,
    pub(crate) commit: Quantiles,
    pub(crate) floor: Quantiles,
    pub(crate) bytes_sent: u64,
}

/// Median, 99th percentile and maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Spread<T> {
    p50: T,
    p99: T,
    max: T,
}

/// All rounds together: what `--json` prints.
///
/// A time that each round has a distribution of is given as the median round's median, the worst round's 99th
/// percentile and the maximum of all.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rounds: u32,
    epochs: u64,
    epochs_per_second: f64,
    writes_acknowledged: u64,
    writes_lost: u64,
    connections_broken: u32,
    pause_us: Spread<u64>,
    commit_us: Spread<u64>,
    activation_us: Spread<u64>,
    gap_ms: Spread<f64>,
    qemu_floor_us: u64,
    bytes_sent: u64,
    seed: u64,
}

impl Report {
    pub(crate) fn new(seed: u64, rounds: &[Round]) -> Report {
        let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
        let (epochs, time) = rounds
            .iter()
            .fold((0, Duration::ZERO), |(n, t), round| (n + round.watched.0, t + round.watched.1));
        Report {
            rounds: rounds.len() as u32,
            epochs: sum(|round| round.epochs),
            epochs_per_second: tenths(epochs as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)),
            writes_acknowledged: sum(|round| round.acknowledged),
            writes_lost: sum(|round| round.lost),
            connections_broken: rounds.iter().map(|round| u32::from(round.broken)).sum(),
            pause_us: over_rounds(rounds, |round| round.pause),
            commit_us: over_rounds(rounds, |round| round.commit),
            activation_us: spread(rounds.iter().map(|round| round.activation), u64::cmp),
            gap_ms: spread(rounds.iter().map(|round| tenths(round.gap.as_secs_f64() * 1e3)), f64::total_cmp),
            qemu_floor_us: over_rounds(rounds, |round| round.floor).p50,
            bytes_sent: sum(|round| round.bytes_sent),
            seed,
        }
    }

    /// Whether every acknowledged write is there, on connections that went on.
    pub(crate) fn nothing_lost(&self) -> bool {
        self.writes_lost == 0 && self.connections_broken == 0
    }
}

fn tenths(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn over_rounds(rounds: &[Round], of: fn(&Round) -> Quantiles) -> Spread<u64> {
    let mut medians = rounds.iter().map(|round| of(round).p50).collect::<Vec<_>>();
    medians.sort_unstable();
    Spread {
        p50: at(&medians, 50),
        p99: rounds.iter().map(|round| of(round).p99).max().unwrap_or_default(),
        max: rounds.iter().map(|round| of(round).max).max().unwrap_or_default(),
    }
}

fn spread<T: Copy + Default>(all: impl Iterator<Item = T>, order: fn(&T, &T) -> Ordering) -> Spread<T> {
    let mut all = all.collect::<Vec<_>>();
    all.sort_unstable_by(order);
    Spread { p50: at(&all, 50), p99: at(&all, 99), max: at(&all, 100) }
}

/// The smallest of the sorted values that `percent` per cent of them do not exceed.
fn at<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milli = |us: u64| us as f64 / 1000.0;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, s: [f64; 3]| {
            writeln!(f, "{name:<24} p50 {:>8.2} ms   p99 {:>8.2} ms   max {:>8.2} ms", s[0], s[1], s[2])
        };
        let us = |s: Spread<u64>| [milli(s.p50), milli(s.p99), milli(s.max)];
        writeln!(f, "{:<24} {} (seed {})", "hosts lost", self.rounds, self.seed)?;
        writeln!(f, "{:<24} {} ({} a second)", "epochs", self.epochs, self.epochs_per_second)?;
        line(f, "guest paused", us(self.pause_us))?;
        writeln!(f, "{:<24} p50 {:>8.2} ms", "  of which QEMU itself", milli(self.qemu_floor_us))?;
        line(f, "seal to commit", us(self.commit_us))?;
        line(f, "activation", us(self.activation_us))?;
        line(f, "longest wait of client", [self.gap_ms.p50, self.gap_ms.p99, self.gap_ms.max])?;
        writeln!(f, "{:<24} {:.1} MiB", "sent to the standby", self.bytes_sent as f64 / f64::from(1 << 20))?;
        writeln!(f, "{:<24} {}", "writes acknowledged", self.writes_acknowledged)?;
        writeln!(f, "{:<24} {}", "writes lost", self.writes_lost)?;
        write!(f, "{:<24} {} of {}", "connections broken", self.connections_broken, self.rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(p50: u64, lost: u64, gap: u64) -> Round {
        let times = Quantiles { p50, p99: p50 * 2, max: p50 * 3 };
        Round {
            epochs: 10,
            watched: (80, Duration::from_secs(2)),
            acknowledged: 100,
            lost,
            broken: false,
            gap: Duration::from_millis(gap),
            activation: p50 * 100,
            pause: times,
            commit: times,
            floor: times,
            bytes_sent: 1000,
        }
    }

    #[test]
    fn rounds_add_up() {
        let report = Report::new(7, &[round(10, 0, 300), round(30, 0, 100), round(20, 0, 200)]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["epochs"], 30);
        assert_eq!(json["epochs_per_second"], 40.0);
        assert_eq!(json["pause_us"], serde_json::json!({ "p50": 20, "p99": 60, "max": 90 }));
        assert_eq!(json["gap_ms"], serde_json::json!({ "p50": 200.0, "p99": 300.0, "max": 300.0 }));
        assert_eq!(json["activation_us"], serde_json::json!({ "p50": 2000, "p99": 3000, "max": 3000 }));
        assert_eq!(json["qemu_floor_us"], 20);
        assert_eq!(json["seed"], 7);
        assert_eq!(json.as_object().unwrap().len(), 13);
        assert!(report.nothing_lost());
    }

    #[test]
    fn a_lost_write_or_connection_is_a_loss() {
        assert!(!Report::new(0, &[round(1, 0, 1), round(1, 1, 1)]).nothing_lost());
        assert!(!Report::new(0, &[Round { broken: true, ..round(1, 0, 1) }]).nothing_lost());
    }
}
