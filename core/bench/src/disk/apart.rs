//! Processors of their own for either side, as on two hosts.
//!
//! ```text
//!  first half:   client, servers, the primary's side, and the kernel's part of sending
//!  second half:  threads of the standby's side, and of the bare copy's
//! ```
//! A thread belongs where the one that started it does, so those that come later need no care.

use super::BenchError;
use super::copy::RECEIVE;
use super::cpu::{STANDBY, threads};
use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::io;

/// While it is there the calling thread, and all that it starts, have the first half.
pub(super) struct Apart {
    all: CpuSet,
    second: CpuSet,
}

impl Apart {
    /// Before any other thread is started.
    pub(super) fn begin() -> Result<Apart, BenchError> {
        let all = sched_getaffinity(None).map_err(failed)?;
        let (mut halves, mut to) = ([CpuSet::new(); 2], 0);
        let half = all.count().div_ceil(2);
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
            if halves[0].count() == half {
                to = 1;
            }
            halves[to].set(cpu);
        }
        let [first, second] = halves;
        if second.count() == 0 {
            return Err(BenchError::OneProcessor);
        }
        sched_setaffinity(None, &first).map_err(failed)?;
        Ok(Apart { all, second })
    }

    /// All of them.
    pub(super) fn processors(&self) -> usize {
        self.all.count() as usize
    }

    /// Once all of the standby's threads are there: they get the second half.
    pub(super) fn part(&self) -> Result<(), BenchError> {
        for (id, name) in threads()? {
            if name.contains(STANDBY) || name.contains(RECEIVE) {
                let thread = id.parse().ok().and_then(Pid::from_raw);
                match sched_setaffinity(thread, &self.second) {
                    // It has ended meanwhile.
                    Err(Errno::SRCH) => {}
                    other => other.map_err(failed)?,
                }
            }
        }
        Ok(())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // What follows is slower at worst.
        let _ = sched_setaffinity(None, &self.all);
    }
}

fn failed(error: Errno) -> BenchError {
    BenchError::Apart(io::Error::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;
    use std::sync::mpsc::channel;
    use std::thread::Builder;

    #[test]
    fn the_standbys_threads_get_the_second_half_and_all_others_the_first() {
        let all = sched_getaffinity(None).unwrap();
        let apart = match Apart::begin() {
            Ok(apart) => apart,
            Err(error) => {
                assert!(matches!(error, BenchError::OneProcessor) && all.count() == 1, "{error}");
                return;
            }
        };
        let threads = ["standby apply", RECEIVE, "primary send"].map(|name| {
            let ((tell, told), (end, ended)) = (channel(), channel::<()>());
            let waits = move || {
                tell.send(gettid()).unwrap();
                let _ = ended.recv();
            };
            let thread = Builder::new().name(name.into()).spawn(waits).unwrap();
            (told.recv().unwrap(), end, thread)
        });
        apart.part().unwrap();
        let halves = threads.map(|(id, end, thread)| {
            let has = sched_getaffinity(Some(id)).unwrap();
            drop(end);
            thread.join().unwrap();
            has
        });
        let first = sched_getaffinity(None).unwrap();
        assert_eq!(halves, [apart.second, apart.second, first]);
        assert_eq!(
            (apart.processors() as u32, first.count() + apart.second.count()),
            (all.count(), all.count())
        );
        assert!((0..CpuSet::MAX_CPU).all(|cpu| !(first.is_set(cpu) && apart.second.is_set(cpu))));
        drop(apart);
        assert_eq!(sched_getaffinity(None).unwrap(), all);
    }
}
