//! Comparing both images by hash, while the guest writes on.
//!
//! ```text
//!  primary                                                             standby
//!   lock of a piece: read, hash, into the queue as a check ─────────►   … commits, applies up to the check: hashes its own
//!   differs: the piece itself, and another check  ◄── each epoch's ──   piece, compares
//! ```
//! Invariants:
//! - A piece is read and its check queued under the lock of its range, so the standby compares at the same place in the order
//!   of the guest's writes.
//! - At most [`MOST_CHECKS`] are under way: neither the application of an epoch nor a guest's write waits long for hashing.
//! - A piece counts as repaired once the standby's was found to be the same.
//! - The end of the session ends it; what was found by then stays.

use crate::copy::contents;
use crate::device::{Device, Medium};
use crate::outbox::{Origin, Outbox};
use crate::wire::Check;
use aventine_api::{DiskVerification, PluginError};
use aventine_disk_common::lock;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Bytes that are compared at once.
const PIECE: usize = 64 << 10;
/// Pieces under way: together what an epoch has the standby read at most.
pub(crate) const MOST_CHECKS: usize = 64;

/// A piece that the standby has not compared.
struct UnderWay {
    offset: u64,
    len: usize,
    /// It was sent again.
    repaired: bool,
}

/// Compares, and tells in `found` how far it is, until it is complete or replication has ended.
pub(crate) fn run(
    device: &Device,
    medium: &Medium,
    outbox: &Outbox,
    repair: bool,
    found: &Mutex<DiskVerification>,
) {
    let mut verifier = Verifier { device, medium, outbox, repair, found, under_way: VecDeque::new() };
    if let Err(error) = verifier.run() {
        outbox.fail(error);
    }
    let mut found = lock(found);
    found.running = false;
    let DiskVerification { total, done, differing, repaired, .. } = *found;
    let image = medium.image.path().display();
    tracing::info!(%image, total, done, differing, repaired, "a verification has ended");
}

struct Verifier<'a> {
    device: &'a Device,
    medium: &'a Medium,
    outbox: &'a Outbox,
    repair: bool,
    found: &'a Mutex<DiskVerification>,
    under_way: VecDeque<UnderWay>,
}

impl Verifier<'_> {
    fn run(&mut self) -> Result<(), PluginError> {
        let (size, mut at) = (self.medium.image.size(), 0);
        while at < size || !self.under_way.is_empty() {
            if at < size && self.under_way.len() < MOST_CHECKS {
                let len = (size - at).min(PIECE as u64) as usize;
                if !self.check(at, len, false)? {
                    return Ok(());
                }
                at += len as u64;
                continue;
            }
            let Some(differs) = self.outbox.talk.compared() else { return Ok(()) };
            let Some(piece) = self.under_way.pop_front() else { return Ok(()) };
            if !self.compared(&piece, differs)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Has the standby compare a piece, with `repair` after it was sent once more. `false`: replication has ended.
    fn check(&mut self, offset: u64, len: usize, repair: bool) -> Result<bool, PluginError> {
        let cost = if repair { Outbox::cost(1, len) } else { 0 };
        if !self.outbox.reserve(cost, Origin::Copy) {
            return Ok(false);
        }
        let Medium { image, history } = self.medium;
        let _held = self.device.ranges.lock(offset, len as u64);
        let mut piece = vec![0; len];
        image.read(offset, &mut piece)?;
        let check = Check::of(offset, &piece);
        if repair {
            // Were the session to end before the standby has it, a resync would bring it.
            history.touch(offset, len as u64)?;
            let change = contents(offset, &piece, &self.outbox.pool);
            self.outbox.push_guest(vec![change], cost, (offset, len as u64));
        }
        self.outbox.push_check(check);
        self.under_way.push_back(UnderWay { offset, len, repaired: repair });
        Ok(true)
    }

    /// `false`: replication has ended.
    fn compared(&mut self, piece: &UnderWay, differs: bool) -> Result<bool, PluginError> {
        let &UnderWay { offset, len, repaired } = piece;
        let bytes = len as u64;
        let image = self.medium.image.path().display();
        let mut found = lock(self.found);
        match (repaired, differs) {
            (true, true) => {
                drop(found);
                tracing::error!(%image, offset, len, "the standby's image differs again after it was repaired: check its disk");
                return Ok(true);
            }
            (true, false) => {
                found.repaired += bytes;
                return Ok(true);
            }
            (false, false) => {
                found.done += bytes;
                return Ok(true);
            }
            (false, true) => {
                found.done += bytes;
                found.differing += bytes;
            }
        }
        drop(found);
        tracing::error!(%image, offset, len, repair = self.repair, "the standby's image differs");
        if self.repair { self.check(offset, len, true) } else { Ok(true) }
    }
}
