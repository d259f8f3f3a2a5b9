//! `aventine verify`: both images of every disk are compared, by the program that runs the guest.

use crate::admin;
use crate::cli::Which;
use crate::exit::Exit;
use crate::output::{print, tell};
use crate::progress::mib;
use crate::query::{refused, the_one};
use aventine_engine::VerificationStatus;
use serde::Serialize;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How often the program is asked how far it is, and how often that is told.
const ASK: Duration = Duration::from_millis(100);
const TELL: Duration = Duration::from_secs(2);

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    disks: &'a [VerificationStatus],
}

/// Has the images compared, and waits for the end.
pub(crate) fn verify(which: &Which, repair: bool, json: bool) -> Exit {
    let verified = the_one(which).and_then(|dir| {
        let begun = admin::verify(&dir, repair).map_err(|e| refused(which, &dir, &e));
        begun.and_then(|()| follow(which, &dir))
    });
    let disks = match verified {
        Ok(disks) => disks,
        Err(exit) => return exit,
    };
    if json {
        let report = serde_json::to_string(&Report { disks: &disks });
        print(report.unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}")));
    } else {
        disks.iter().for_each(|disk| print(as_text(disk)));
    }
    let good = |d: &VerificationStatus| d.compared == d.total && d.differing == d.repaired;
    if disks.iter().all(good) { Exit::Done } else { Exit::Error }
}

/// Waits until every disk's verification has ended, and tells how far they are.
fn follow(which: &Which, dir: &Path) -> Result<Vec<VerificationStatus>, Exit> {
    let mut told = Instant::now();
    loop {
        let disks = admin::status(dir).map_err(|e| refused(which, dir, &e))?.verifications;
        if !disks.iter().any(|d| d.running) {
            return Ok(disks);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            disks.iter().filter(|d| d.running).for_each(|d| tell(as_text(d)));
        }
        thread::sleep(ASK);
    }
}

/// A disk's line.
pub(crate) fn as_text(found: &VerificationStatus) -> String {
    let VerificationStatus { disk, running, total, compared, differing, repaired } = found;
    let far = match (running, compared == total) {
        (true, _) => format!("{:.0} of {:.0} MiB compared so far", mib(*compared), mib(*total)),
        (false, true) => format!("{:.0} MiB compared", mib(*total)),
        (false, false) => {
            format!("ended early, with protection: {:.0} of {:.0} MiB compared", mib(*compared), mib(*total))
        }
    };
    match (*differing, *repaired) {
        (0, _) => format!("{disk}: {far}, no difference"),
        (d, r) if d == r => format!("{disk}: {far}; {d} bytes differed and were repaired"),
        (d, 0) => format!("{disk}: {far}; {d} bytes differ"),
        (d, r) => format!("{disk}: {far}; {d} bytes differed, {r} of them were repaired"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_said_in_a_line() {
        let mut found =
            VerificationStatus { disk: "disk0".into(), total: 64 << 20, ..VerificationStatus::default() };
        let mut line = |running, compared, differing, repaired| {
            (found.running, found.compared) = (running, compared);
            (found.differing, found.repaired) = (differing, repaired);
            as_text(&found)
        };
        assert_eq!(line(true, 1 << 20, 0, 0), "disk0: 1 of 64 MiB compared so far, no difference");
        assert_eq!(line(false, 64 << 20, 0, 0), "disk0: 64 MiB compared, no difference");
        assert_eq!(
            line(false, 64 << 20, 4096, 4096),
            "disk0: 64 MiB compared; 4096 bytes differed and were repaired"
        );
        assert_eq!(line(false, 64 << 20, 4096, 0), "disk0: 64 MiB compared; 4096 bytes differ");
        assert_eq!(
            line(false, 1 << 20, 8192, 4096),
            "disk0: ended early, with protection: 1 of 64 MiB compared; 8192 bytes differed, 4096 of them were repaired"
        );
    }
}
