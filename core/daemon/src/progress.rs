//! What a running program tells on stderr: every change of state, the initial copy every two seconds, and a line a
//! minute for the log.

use aventine_engine::Status;
use std::time::{Duration, Instant};

/// How often the initial copy is told about.
const COPYING: Duration = Duration::from_secs(2);
/// How often a protected guest is logged.
const PROTECTED: Duration = Duration::from_secs(60);

/// Something to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// For whoever looks at the terminal.
    Tell(String),
    /// For the log.
    Log(String),
}

/// Decides what to say about the newest status.
pub(crate) struct Progress {
    /// State and detail last told.
    told: (String, String),
    at: Instant,
    committed: u64,
    copied: u64,
}

impl Progress {
    pub(crate) fn new(now: Instant) -> Progress {
        Progress { told: Default::default(), at: now, committed: 0, copied: 0 }
    }

    /// What to say now, if anything. Called several times a second.
    pub(crate) fn line(&mut self, status: &Status, now: Instant) -> Option<Line> {
        let passed = now.saturating_duration_since(self.at);
        let line = if (status.state.as_str(), status.detail.as_str()) != (&self.told.0, &self.told.1) {
            Line::Tell(headline(status))
        } else if status.state == "copying" && passed >= COPYING {
            Line::Tell(format!(
                "copying: {}",
                copied(status, status.copied_bytes.saturating_sub(self.copied), passed)
            ))
        } else if status.state == "protected" && passed >= PROTECTED {
            Line::Log(pace(status, status.committed.saturating_sub(self.committed), passed))
        } else {
            return None;
        };
        *self = Progress {
            told: (status.state.clone(), status.detail.clone()),
            at: now,
            committed: status.committed,
            copied: status.copied_bytes,
        };
        Some(line)
    }
}

/// The state and the word that explains it.
fn headline(status: &Status) -> String {
    let Status { state, peer, detail, .. } = status;
    let what = match (status.side.as_str(), state.as_str()) {
        ("primary", "connecting") if detail.is_empty() => "looking for the standby".into(),
        ("primary", "copying") => "the guest runs; its memory and disks go to the standby".into(),
        ("standby", "copying") => "memory and disks come from the primary".into(),
        (_, "arming") => "the first checkpoint is under way".into(),
        (_, "recording") => format!("epoch {}, to {peer}; the guest is not protected", status.committed),
        (_, "protected") => format!("epoch {}, standby {peer}", status.committed),
        (_, "ending") => "ending protection".into(),
        (_, "resolving") => "the other side is lost; asking the arbiter who owns the guest".into(),
        (_, "handing-over") => "the standby's host is to run the guest".into(),
        (_, "unprotected") => "the guest runs on, unprotected".into(),
        (_, "fenced") => "the other side owns the guest".into(),
        (_, "handed-over") => "the standby takes the guest over".into(),
        (_, "waiting") => "for a primary".into(),
        (_, "active") => "the guest was taken over and runs here".into(),
        (_, "armed") => format!("ready to take over from {peer}"),
        _ => String::new(),
    };
    [state.clone(), what, detail.clone()].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": ")
}

fn copied(status: &Status, since: u64, passed: Duration) -> String {
    let (done, total) = (status.copied_bytes, status.copy_total_bytes.max(status.copied_bytes));
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    let rate = mib(since) / passed.as_secs_f64();
    format!("{percent} % ({:.0} of {:.0} MiB, {rate:.0} MiB/s)", mib(done), mib(total))
}

fn pace(status: &Status, epochs: u64, passed: Duration) -> String {
    format!(
        "protected: epoch {}, {:.0} epochs/s, pause {}, commit {}",
        status.committed,
        epochs as f64 / passed.as_secs_f64(),
        millis(status.pause_us.p50),
        millis(status.commit_us.p50),
    )
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(crate) fn millis(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str) -> Status {
        Status { side: "primary".into(), state: state.into(), peer: "b:7400".into(), ..Status::default() }
    }

    fn told(text: &str) -> Option<Line> {
        Some(Line::Tell(text.into()))
    }

    #[test]
    fn every_change_is_told_once() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        assert_eq!(progress.line(&status("connecting"), now), told("connecting: looking for the standby"));
        assert_eq!(progress.line(&status("connecting"), now + Duration::from_secs(500)), None);
        let protected = Status { committed: 1, ..status("protected") };
        assert_eq!(progress.line(&protected, now), told("protected: epoch 1, standby b:7400"));
        let lost = Status { detail: "link cut".into(), ..status("unprotected") };
        assert_eq!(progress.line(&lost, now), told("unprotected: the guest runs on, unprotected: link cut"));
        assert_eq!(progress.line(&lost, now), None);
    }

    #[test]
    fn a_copy_is_told_every_two_seconds() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        let at =
            |mib: u64| Status { copied_bytes: mib << 20, copy_total_bytes: 4096 << 20, ..status("copying") };
        assert!(progress.line(&at(0), now).is_some());
        assert_eq!(progress.line(&at(100), now + Duration::from_millis(1900)), None);
        let line = progress.line(&at(1024), now + Duration::from_secs(2));
        assert_eq!(line, told("copying: 25 % (1024 of 4096 MiB, 512 MiB/s)"));
        assert_eq!(progress.line(&at(1025), now + Duration::from_millis(2100)), None);
    }

    #[test]
    fn a_protected_guest_is_logged_once_a_minute() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        let at = |committed| Status { committed, ..status("protected") };
        assert!(progress.line(&at(1), now).is_some());
        assert_eq!(progress.line(&at(1000), now + Duration::from_secs(59)), None);
        let Some(Line::Log(line)) = progress.line(&at(2401), now + Duration::from_secs(60)) else {
            panic!("no line")
        };
        assert!(line.starts_with("protected: epoch 2401, 40 epochs/s"), "{line}");
    }
}
