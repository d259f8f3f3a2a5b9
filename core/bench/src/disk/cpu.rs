//! Processor time of each side, told apart by the names of its threads.

use super::BenchError;
use std::fs::{self, DirEntry};
use std::io;
use std::time::Duration;

/// Names of the disk on the primary, which is its export's as well, on the standby, and of the export without replication. They
/// are parts of their threads' names.
pub(super) const PRIMARY: &str = "primary";
pub(super) const STANDBY: &str = "standby";
pub(super) const EXPORT: &str = "single";
/// What every vhost-user front-end's worker is called: it is counted for whichever of them has its turn.
const WORKER: &str = "vring_worker";

/// What threads have spent so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Cpu {
    pub(super) export: Duration,
    pub(super) primary: Duration,
    pub(super) standby: Duration,
    pub(super) worker: Duration,
}

impl Cpu {
    pub(super) fn now() -> Result<Cpu, BenchError> {
        let mut cpu = Cpu::default();
        for (id, name) in threads()? {
            let sides = [
                (EXPORT, &mut cpu.export),
                (PRIMARY, &mut cpu.primary),
                (STANDBY, &mut cpu.standby),
                (WORKER, &mut cpu.worker),
            ];
            if let Some((_, side)) = sides.into_iter().find(|(part, _)| name.contains(part)) {
                *side += nanoseconds(&read(&id, "schedstat")?).map_err(BenchError::Cpu)?;
            }
        }
        Ok(cpu)
    }

    pub(super) fn since(self, before: Cpu) -> Cpu {
        Cpu {
            export: self.export.saturating_sub(before.export),
            primary: self.primary.saturating_sub(before.primary),
            standby: self.standby.saturating_sub(before.standby),
            worker: self.worker.saturating_sub(before.worker),
        }
    }
}

/// This process' threads: numbers and names.
pub(super) fn threads() -> Result<Vec<(String, String)>, BenchError> {
    let named = |thread: io::Result<DirEntry>| {
        let id = thread.map_err(BenchError::Cpu)?.file_name().to_string_lossy().into_owned();
        let name = read(&id, "comm")?;
        Ok((id, name))
    };
    fs::read_dir("/proc/self/task").map_err(BenchError::Cpu)?.map(named).collect()
}

/// A file of a thread; nothing if it has ended meanwhile.
fn read(id: &str, file: &str) -> Result<String, BenchError> {
    match fs::read_to_string(format!("/proc/self/task/{id}/{file}")) {
        Err(e) if matches!(e.raw_os_error(), Some(2 | 3)) => Ok(String::new()),
        other => other.map_err(BenchError::Cpu),
    }
}

/// The first figure: nanoseconds on a processor.
fn nanoseconds(schedstat: &str) -> io::Result<Duration> {
    let first = schedstat.split_whitespace().next().unwrap_or("0");
    first.parse().map(Duration::from_nanos).map_err(io::Error::other)
}
