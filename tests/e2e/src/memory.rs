//! Memory that is written over and over, faster than any link carries it.
//!
//! Each page holds the number of the pass that wrote it last. The next pass looks at it first: a guest that goes on from
//! memory of which some page is older or newer than the rest notices it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{hint, thread};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Memory that a thread of its own keeps dirty until the program ends.
#[derive(Clone, Debug, Default)]
pub struct Dirtying {
    passes: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Dirtying {
    /// Begins with that many pages.
    pub fn start(pages: usize) -> Dirtying {
        let dirtying = Dirtying::default();
        let told = dirtying.clone();
        thread::spawn(move || {
            let mut memory = vec![0u8; pages * PAGE];
            for pass in 1.. {
                if !write_over(&mut memory, pass) {
                    told.broken.store(true, Ordering::Relaxed);
                }
                told.passes.store(pass, Ordering::Relaxed);
            }
        });
        dirtying
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
