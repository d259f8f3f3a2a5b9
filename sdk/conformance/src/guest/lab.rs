//! A guest at its bench, and what the cases do with it as the engine would.

use super::GuestBench;
use super::memory::{Mapped, copied, differing};
pub(super) use crate::suite::Seen;
use aventine_api::{Epoch, Guest, Host, PAGE_SIZE, PageBitmap, PluginError, Side};
use std::fmt::Display;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Bytes of memory that are read before a guest counts as standing still.
const STILL: usize = 48 << 20;

pub(super) struct Quiet;

impl Host for Quiet {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        eprintln!("the guest reported: {}", error.chain());
    }
}

/// An error as a case tells it.
pub(super) fn done<T>(what: impl Display, answer: Result<T, PluginError>) -> Result<T, String> {
    answer.map_err(|e| format!("{what} failed: {}", e.chain()))
}

/// A started guest.
pub(super) struct Lab<B> {
    pub(super) guest: Box<dyn Guest>,
    pub(super) memory: Mapped,
    pub(super) bench: Arc<B>,
}

impl<B: GuestBench> Lab<B> {
    pub(super) fn start(bench: &Arc<B>, side: Side) -> Result<Lab<B>, String> {
        let mut guest = bench.make(side, Arc::new(Quiet));
        done(format_args!("`start` of the {}", side.name()), guest.start(&bench.attachments()))?;
        let memory = Mapped::of(&*guest)?;
        Ok(Lab { guest, memory, bench: Arc::clone(bench) })
    }

    /// A primary's guest, paused.
    pub(super) fn primary() -> Result<Lab<B>, String> {
        Lab::start(&Arc::new(B::new()), Side::Primary)
    }

    /// A primary's guest that runs and has begun to count.
    pub(super) fn running() -> Result<Lab<B>, String> {
        let mut lab = Lab::primary()?;
        lab.resume()?;
        lab.advance("after `start` and `resume`")?;
        Ok(lab)
    }

    pub(super) fn pause(&mut self) -> Seen {
        done("`pause`", self.guest.pause())
    }

    pub(super) fn resume(&mut self) -> Seen {
        done("`resume`", self.guest.resume())
    }

    pub(super) fn progress(&self) -> Option<u64> {
        B::progress(&self.memory.live())
    }

    /// Waits until the guest has come further.
    pub(super) fn advance(&self, when: &str) -> Seen {
        let before = self.progress();
        let deadline = Instant::now() + B::PATIENCE;
        while self.progress().is_none_or(|now| before.is_some_and(|before| now <= before)) {
            if Instant::now() >= deadline {
                return Err(format!("{when}, the guest did not go on from {before:?} in {:?}", B::PATIENCE));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Looks at the memory for a while: nothing changes.
    pub(super) fn expect_still(&self, when: &str) -> Seen {
        let before = self.memory.read_all();
        for _ in 0..STILL / before.len() {
            if let Some(page) = differing(&before, &self.memory.read_all()).runs().next() {
                return Err(format!("{when}, page {} changed", page.0));
            }
            thread::yield_now();
        }
        Ok(())
    }

    pub(super) fn bitmap(&self) -> PageBitmap {
        PageBitmap::new(self.memory.pages())
    }

    /// What is dirty now.
    pub(super) fn dirty(&mut self) -> Result<PageBitmap, String> {
        let mut dirty = self.bitmap();
        done("`dirty`", self.guest.dirty(&mut dirty))?;
        Ok(dirty)
    }

    pub(super) fn populated(&mut self) -> Result<PageBitmap, String> {
        let mut pages = self.bitmap();
        done("`populated`", self.guest.populated(&mut pages))?;
        Ok(pages)
    }

    pub(super) fn save(&mut self, state: &mut Vec<u8>) -> Seen {
        done("`start_state`", self.guest.start_state())?;
        done("`finish_state`", self.guest.finish_state(state))
    }

    /// Takes up a checkpoint, in the memory that it was written into.
    pub(super) fn activate(&mut self, checkpoint: &Checkpoint) -> Seen {
        self.memory
            .fill(&checkpoint.image)
            .map_err(|e| format!("a standby's memory is not writable: {e}"))?;
        done("`activate`", self.guest.activate(&checkpoint.state))
    }
}

/// A checkpoint as a standby keeps it.
pub(super) struct Checkpoint {
    pub(super) image: Vec<u8>,
    pub(super) state: Vec<u8>,
}

impl Checkpoint {
    /// An empty one.
    pub(super) fn none<B: GuestBench>(lab: &Lab<B>) -> Checkpoint {
        Checkpoint { image: vec![0; lab.memory.pages() as usize * PAGE_SIZE], state: Vec::new() }
    }

    /// A full copy, made as the engine makes it, and a first epoch. The guest is left paused.
    pub(super) fn full<B: GuestBench>(lab: &mut Lab<B>) -> Result<Checkpoint, String> {
        let mut checkpoint = Checkpoint::none(lab);
        let mut pages = lab.dirty()?;
        pages.merge(&lab.populated()?);
        lab.memory.copy(&pages, &mut checkpoint.image);
        checkpoint.epoch(lab)?;
        Ok(checkpoint)
    }

    /// Copies what is dirty, whether the guest runs or not.
    pub(super) fn copy<B: GuestBench>(&mut self, lab: &mut Lab<B>) -> Result<PageBitmap, String> {
        let dirty = lab.dirty()?;
        lab.memory.copy(&dirty, &mut self.image);
        Ok(dirty)
    }

    /// One epoch; the guest is left paused.
    pub(super) fn epoch<B: GuestBench>(&mut self, lab: &mut Lab<B>) -> Result<PageBitmap, String> {
        lab.pause()?;
        done("`start_state`", lab.guest.start_state())?;
        let dirty = self.copy(lab)?;
        done("`finish_state`", lab.guest.finish_state(&mut self.state))?;
        Ok(dirty)
    }

    /// It is what the guest, which is paused, holds.
    pub(super) fn expect_equal<B: GuestBench>(&self, lab: &Lab<B>, when: &str) -> Seen {
        match differing(&self.image, &lab.memory.read_all()).runs().next() {
            Some((page, _)) => Err(format!("{when}, page {page} differs from what was copied")),
            None => Ok(()),
        }
    }

    pub(super) fn progress<B: GuestBench>(&self) -> Option<u64> {
        B::progress(&copied(&self.image))
    }
}

/// Whether a process is there.
pub(super) fn exists(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}
