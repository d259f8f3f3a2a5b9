//! What a run has shown.

use crate::SoakError;
use crate::fault::Fault;
use aventine_e2e::guest::GuestError;
use aventine_e2e::volume::VolumeError;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A run so far. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    detection: String,
    interval: String,
    /// Writes that were acknowledged and read back.
    pub writes_acknowledged: u64,
    /// Acknowledged writes that were not there.
    pub writes_lost: u64,
    /// Clients' connections that did not last.
    pub connections_broken: u64,
    faults: BTreeMap<String, Figures>,
    /// What ended the run early.
    pub failure: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    rounds: u64,
    /// How often the guest went to the other host.
    moved: u64,
    gap_p50: f64,
    gap_p99: f64,
    gap_max: f64,
    #[serde(skip)]
    gaps: Vec<Duration>,
}

impl Report {
    pub(crate) fn new(seed: u64, detection: &str, interval: &str) -> Report {
        Report {
            seed,
            detection: detection.to_owned(),
            interval: interval.to_owned(),
            writes_acknowledged: 0,
            writes_lost: 0,
            connections_broken: 0,
            faults: BTreeMap::new(),
            failure: None,
        }
    }

    /// How many there were.
    pub fn rounds(&self) -> u64 {
        self.faults.values().map(|figures| figures.rounds).sum()
    }

    /// One more round; `gap` is the longest time between two answers in it.
    pub(crate) fn add(&mut self, fault: Fault, moved: bool, gap: Duration) {
        let figures = self.faults.entry(format!("{fault:?}").to_lowercase()).or_default();
        figures.rounds += 1;
        figures.moved += u64::from(moved);
        figures.gaps.push(gap);
        figures.gaps.sort_unstable();
        let at = |percent: usize| {
            let index = (figures.gaps.len() * percent).div_ceil(100).saturating_sub(1);
            figures.gaps[index].as_secs_f64() * 1000.0
        };
        (figures.gap_p50, figures.gap_p99, figures.gap_max) = (at(50), at(99), at(100));
    }

    /// What ended the run may be a loss.
    pub(crate) fn count_loss(&mut self, error: &SoakError) {
        match error {
            SoakError::Lost { lost, broken, .. } => {
                self.writes_lost += lost;
                self.connections_broken += u64::from(*broken);
            }
            SoakError::Volume(VolumeError::Transactions { found, acknowledged, .. }) => {
                self.writes_lost += acknowledged.saturating_sub(*found);
            }
            SoakError::Guest(GuestError::Broken(_)) => self.connections_broken += 1,
            _ => {}
        }
    }

    /// The whole of it.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|e| format!("{{\"failure\":\"{e}\"}}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, detection {}, epochs every {}", self.seed, self.detection, self.interval)?;
        for (fault, figures) in &self.faults {
            let Figures { rounds, moved, gap_p50, gap_p99, gap_max, .. } = figures;
            writeln!(
                f,
                "  {fault:<13} {rounds:>5} times, guest moved {moved:>5} times, client waited {gap_p50:.0} ms (median), \
                 {gap_p99:.0} ms (99 %), {gap_max:.0} ms (longest)"
            )?;
        }
        write!(
            f,
            "  {} writes acknowledged, {} lost; {} connections broken",
            self.writes_acknowledged, self.writes_lost, self.connections_broken
        )?;
        self.failure.as_ref().map_or(Ok(()), |failure| write!(f, "\n  ended early: {failure}"))
    }
}
