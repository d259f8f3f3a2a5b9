//! `aventine status`, `stop` and `handover`: asking what runs on this host.

use crate::admin::{self, AskError};
use crate::cli::Which;
use crate::exit::Exit;
use crate::output::{print, tell, tell_error};
use crate::place::{self, PlaceError};
use crate::progress::{mib, millis};
use crate::run::load;
use crate::verify;
use aventine_engine::{AuditStatus, MetricStatus, Quantiles, Status};
use std::fs;
use std::path::{Path, PathBuf};

/// Shows the status of every program meant.
pub(crate) fn status(which: &Which, json: bool) -> Exit {
    let dirs = match candidates(which) {
        Ok(dirs) => dirs,
        Err(exit) => return exit,
    };
    let mut exit = Exit::NotRunning;
    for dir in &dirs {
        match admin::status(dir) {
            Ok(status) => {
                print(if json { as_json(&status) } else { as_text(&status, dir) });
                exit = if exit == Exit::NotRunning { Exit::Done } else { exit };
            }
            Err(AskError::NotRunning(_)) => {}
            Err(e) => {
                tell_error(&e);
                exit = Exit::Error;
            }
        }
    }
    if exit == Exit::NotRunning {
        tell_not_running(which, &dirs);
    }
    exit
}

/// Ends protection.
pub(crate) fn stop(which: &Which) -> Exit {
    command(which, admin::stop, "Protection has ended.")
}

/// Hands the guest over to the other host.
pub(crate) fn handover(which: &Which) -> Exit {
    command(which, admin::handover, "The guest runs on the other host; this one is its standby.")
}

/// Has one program do something, and says what was done.
fn command(which: &Which, ask: fn(&Path) -> Result<(), AskError>, done: &str) -> Exit {
    let asked = the_one(which).and_then(|dir| ask(&dir).map_err(|e| refused(which, &dir, &e)));
    match asked {
        Ok(()) => {
            print(done);
            Exit::Done
        }
        Err(exit) => exit,
    }
}

/// The state directory of the program that is meant.
pub(crate) fn the_one(which: &Which) -> Result<PathBuf, Exit> {
    if which.config.is_none() && which.state_dir.is_none() {
        tell("error: Which one? Name its configuration file, or its state directory with --state-dir");
        return Err(Exit::Usage);
    }
    candidates(which)?.into_iter().next().ok_or(Exit::NotRunning)
}

/// Says why a program did not do what it was asked.
pub(crate) fn refused(which: &Which, dir: &Path, error: &AskError) -> Exit {
    if let AskError::NotRunning(_) = error {
        tell_not_running(which, &[dir.to_owned()]);
        return Exit::NotRunning;
    }
    tell_error(error);
    Exit::Error
}

/// The state directories that may be meant.
fn candidates(which: &Which) -> Result<Vec<PathBuf>, Exit> {
    if let Some(dir) = &which.state_dir {
        return Ok(vec![dir.clone()]);
    }
    let dirs = match &which.config {
        Some(config) => {
            let name = load(config)?.name;
            place::default(&name).map(|dir| vec![dir])
        }
        None => everything(),
    };
    dirs.map_err(|e| {
        tell_error(&e);
        Exit::Error
    })
}

/// Every default state directory on this host, by guest.
fn everything() -> Result<Vec<PathBuf>, PlaceError> {
    let guests = fs::read_dir(place::base()?).into_iter().flatten().flatten().map(|guest| guest.path());
    let mut guests: Vec<_> = guests.collect();
    guests.sort_unstable();
    Ok(guests)
}

fn tell_not_running(which: &Which, dirs: &[PathBuf]) {
    let looked: Vec<_> = match dirs {
        [] => place::base().into_iter().map(|p| p.display().to_string()).collect(),
        dirs => dirs.iter().map(|d| d.display().to_string()).collect(),
    };
    let hint = match (&which.state_dir, &which.config) {
        (None, Some(_)) => "; if it was started with --state-dir, name that instead",
        _ => "",
    };
    tell(format_args!("error: Nothing is running (looked in {}){hint}", looked.join(" and ")));
}

fn as_json(status: &Status) -> String {
    serde_json::to_string(status).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

fn as_text(status: &Status, dir: &Path) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut row = |name, value: String| {
        if !value.is_empty() {
            rows.push((name, value));
        }
    };
    row("why", status.detail.clone());
    row("other side", status.peer.clone());
    row("guest process", status.guest_pid.map(|pid| pid.to_string()).unwrap_or_default());
    if status.state == "copying" {
        row("copied", format!("{:.0} of {:.0} MiB", mib(status.copied_bytes), mib(status.copy_total_bytes)));
    }
    if status.committed > 0 || status.sealed > 0 {
        row("epochs", format!("{} committed, {} sealed", status.committed, status.sealed));
    }
    let table = table(status);
    if table.len() > 1 {
        table.into_iter().for_each(|(name, value)| row(name, value));
    }
    if status.side == "primary" {
        row("sent", format!("{:.1} MiB", mib(status.bytes_sent)));
        row("frames held", format!("{} bytes", status.held_bytes));
        row("frames lost", status.dropped_frames.to_string());
    }
    for (name, value) in status.audit.iter().flat_map(audit) {
        row(name, value);
    }
    for MetricStatus { plugin, name, help, value } in &status.metrics {
        row(name, format!("{value}  ({plugin}: {help})"));
    }
    for verification in &status.verifications {
        row("verification", verify::as_text(verification));
    }
    if status.activation_us > 0 {
        row("activation took", millis(status.activation_us));
    }
    row("state directory", dir.display().to_string());
    let lines: Vec<_> = rows.iter().map(|(name, value)| format!("  {name:<16} {value}")).collect();
    format!("{}, {}: {}\n{}", status.guest, status.side, status.state, lines.join("\n"))
}

/// What there is to say about an audit; empty where there is nothing yet.
fn audit(audit: &AuditStatus) -> [(&'static str, String); 5] {
    let AuditStatus { every, pages, passes, last_pass_epoch, last_pass_epochs, .. } = audit;
    let seconds = audit.last_pass_ms as f64 / 1000.0;
    let last = format!("ended in epoch {last_pass_epoch}, took {last_pass_epochs} epochs, {seconds:.1} s");
    [
        ("audit", format!("{pages} pages compared, {passes} passes, every {every} epochs")),
        ("  last pass", if *passes > 0 { last } else { String::new() }),
        ("  hashing", format!("{:.2} % of a processor", audit.hashing_percent)),
        ("  differences", format!("{} pages", audit.mismatches)),
        ("  the last", audit.last_mismatch.clone()),
    ]
}

/// Where the epochs' time goes: its head, and a line for each part that was measured in the present role.
fn table(status: &Status) -> Vec<(&'static str, String)> {
    let line = |cells: [String; 3]| cells.map(|cell| format!("{cell:>10}")).concat();
    let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
    let times: &[(&str, &Quantiles)] = match status.side.as_str() {
        "standby" => &[
            ("receiving", &status.receive_us),
            ("disks' part", &status.disks_us),
            ("applying", &status.apply_us),
        ],
        _ => &[
            ("pause", &status.pause_us),
            ("  finding pages", &status.scan_us),
            ("  copying pages", &status.copy_us),
            ("  device state", &status.device_us),
            ("  link is full", &status.room_us),
            ("before sending", &status.queue_us),
            ("encoding", &status.encode_us),
            ("sending", &status.send_us),
            ("standby", &status.standby_us),
            ("commit", &status.commit_us),
        ],
    };
    let mut lines = vec![("time in ms", line(["median", "99 %", "longest"].map(String::from)))];
    let measured = times.iter().filter(|(_, q)| q.max > 0);
    lines.extend(measured.map(|(name, q)| (*name, line([q.p50, q.p99, q.max].map(ms)))));
    let dirty = &status.dirty_pages;
    if dirty.max > 0 {
        lines.push(("dirty pages", line([dirty.p50, dirty.p99, dirty.max].map(|n| n.to_string()))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_there_is() {
        let pause_us = Quantiles { p50: 3100, p99: 4000, max: 5250 };
        let status = Status {
            guest: "web".into(),
            side: "primary".into(),
            state: "protected".into(),
            peer: "b:7400".into(),
            committed: 11,
            sealed: 12,
            pause_us,
            dirty_pages: Quantiles { p50: 120, p99: 1300, max: 8192 },
            // Of an earlier role.
            receive_us: pause_us,
            audit: Some(AuditStatus {
                every: 100,
                pages: 5000,
                passes: 2,
                last_pass_epoch: 9,
                last_pass_epochs: 4,
                last_pass_ms: 2500,
                hashing_percent: 0.75,
                ..AuditStatus::default()
            }),
            ..Status::default()
        };
        let text = as_text(&status, Path::new("/run/x"));
        assert_eq!(
            text,
            "web, primary: protected\n  \
               other side       b:7400\n  \
               epochs           11 committed, 12 sealed\n  \
               time in ms           median      99 %   longest\n  \
               pause                  3.10      4.00      5.25\n  \
               dirty pages             120      1300      8192\n  \
               sent             0.0 MiB\n  \
               frames held      0 bytes\n  \
               frames lost      0\n  \
               audit            5000 pages compared, 2 passes, every 100 epochs\n  \
               \x20 last pass      ended in epoch 9, took 4 epochs, 2.5 s\n  \
               \x20 hashing        0.75 % of a processor\n  \
               \x20 differences    0 pages\n  \
               state directory  /run/x"
        );
    }
}
