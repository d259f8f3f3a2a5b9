//! Memory that is written over and over, faster than any link carries it.
//!
//! Each page holds the number of the pass that wrote it last. The next pass looks at it first: a guest that goes on from
//! memory of which some page is older or newer than the rest notices it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages that are written between two looks at the clock.
const SLICE: usize = 128;
/// What was not written in time is made up for if it is no older.
const LATE: Duration = Duration::from_millis(50);

/// Memory that a thread of its own keeps dirty until the program ends.
#[derive(Clone, Debug, Default)]
pub struct Dirtying {
    pages: Arc<AtomicU64>,
    passes: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Dirtying {
    /// Begins with that many pages; writes `rate` pages in a second of the guest's time, or as many as it can.
    pub fn start(pages: usize, rate: Option<u64>) -> Dirtying {
        let dirtying = Dirtying::default();
        let told = dirtying.clone();
        thread::spawn(move || {
            let mut memory = vec![0u8; pages * PAGE];
            let mut due = Instant::now();
            for pass in 1.. {
                for slice in memory.chunks_mut(SLICE * PAGE) {
                    if !write_over(slice, pass) {
                        told.broken.store(true, Ordering::Relaxed);
                    }
                    let pages = (slice.len() / PAGE) as u64;
                    told.pages.fetch_add(pages, Ordering::Relaxed);
                    if let Some(rate) = rate {
                        let now = Instant::now();
                        due = (due + Duration::from_secs(pages) / rate as u32).max(now - LATE);
                        thread::sleep(due.saturating_duration_since(now));
                    }
                }
                told.passes.store(pass, Ordering::Relaxed);
            }
        });
        dirtying
    }

    /// How many pages were written, each as often as it was.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// How often all of it was written; `None` once a page was not as the pass before had left it.
    pub fn passes(&self) -> Option<u64> {
        (!self.broken.load(Ordering::Relaxed)).then(|| self.passes.load(Ordering::Relaxed))
    }
}

/// Writes `pass` into every page; `false` if one was not from the pass before.
fn write_over(memory: &mut [u8], pass: u64) -> bool {
    let mut whole = true;
    for page in memory.chunks_exact_mut(PAGE) {
        // What the memory holds is not what the compiler thinks: the host may be another one by now.
        let (word, _) = hint::black_box(page).split_at_mut(8);
        whole &= word == (pass - 1).to_le_bytes();
        word.copy_from_slice(&pass.to_le_bytes());
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_older_or_newer_is_found() {
        let mut memory = vec![0; 4 * PAGE];
        assert!(write_over(&mut memory, 1) && write_over(&mut memory, 2));
        for wrong in [1u64, 3] {
            let mut memory = memory.clone();
            memory[2 * PAGE..][..8].copy_from_slice(&wrong.to_le_bytes());
            assert!(!write_over(&mut memory, 3));
        }
        assert!(write_over(&mut memory, 3));
    }
}
