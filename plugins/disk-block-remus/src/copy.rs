//! The initial copy: the image as it is, or the blocks of it that the two sides may differ in, while the guest goes on
//! writing.
//!
//! Piece by piece: the lock of the piece's range, what the image holds there, into the queue, unlock. A write to a
//! piece that was copied before follows the copy in the queue; one to a later piece precedes the copy, which then
//! reads it as well. So the standby, which carries out both in the queue's order, ends with the same image, and
//! whatever it had before is overwritten: holes are sent as zeroes.

use crate::blocks::block_of;
use crate::device::{Device, Medium};
use crate::outbox::{Origin, Outbox};
use crate::talk::Plan;
use crate::wire::Change;
use aventine_api::{Host, Metric};
use aventine_disk_common::image::{Image, ImageError, ZEROES};
use aventine_disk_common::pool::Pool;
use std::iter;
use std::ops::Range;
use std::sync::Arc;

/// A guest's write waits at most for the reading of so much.
const PIECE: usize = 256 << 10;

/// Figures of a copy, as the status shows them.
pub(crate) struct Figures {
    /// Bytes of the image that are to be read for the standby.
    total: Arc<dyn Metric>,
    done: Arc<dyn Metric>,
}

impl Figures {
    pub(crate) fn of(host: &dyn Host) -> Figures {
        let help = "bytes of the image that the newest copy or resync has to send";
        let total = host.metric("resync_total_bytes", help);
        let done = host.metric("resynced_bytes", "bytes of the image that it has sent");
        Figures { total, done }
    }
}

/// Copies what the plan says. Ends early where replication does.
pub(crate) fn copy(
    device: &Device,
    Medium { image, history }: &Medium,
    outbox: &Outbox,
    plan: Plan,
    figures: &Figures,
) {
    let (size, ranges) = match plan {
        Plan::Full(why) => {
            tracing::info!(image = %image.path().display(), bytes = image.size(), why, "a full copy");
            (image.size(), iter::once(0..image.size()).collect())
        }
        Plan::Changed(theirs) => {
            // Changed later: in the queue.
            theirs.or(&history.changed());
            let (size, block) = (image.size(), block_of(image.size()));
            let bytes = |blocks: Range<u64>| blocks.start * block..(blocks.end * block).min(size);
            let ranges: Vec<_> = theirs.ranges().into_iter().map(bytes).filter(|r| !r.is_empty()).collect();
            let size = ranges.iter().map(|r| r.end - r.start).sum();
            tracing::info!(image = %image.path().display(), bytes = size, "a resync: only changed blocks");
            (size, ranges)
        }
    };
    figures.done.set(0);
    figures.total.set(size);
    let mut copier =
        Copier { device, image, outbox, done: &*figures.done, at: 0, covers: image.size() - size };
    for range in ranges {
        match copier.copy(range) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return outbox.fail(error.into()),
        }
    }
    outbox.push_copied(copier.covers);
}

struct Copier<'a> {
    device: &'a Device,
    image: &'a Image,
    outbox: &'a Outbox,
    done: &'a dyn Metric,
    at: u64,
    /// Length of the last piece, at first of what need not be copied. It counts as copied with the piece after it, the last
    /// of all with the end of the copy: whoever sees the copy complete can seal an epoch.
    covers: u64,
}

impl Copier<'_> {
    /// Copies a range. `false`: replication has ended.
    fn copy(&mut self, range: Range<u64>) -> Result<bool, ImageError> {
        let mut buffer = vec![0; PIECE.min((range.end - range.start) as usize)];
        self.at = range.start;
        while self.at < range.end {
            let data = self.image.next_data(self.at)?.min(range.end);
            let hole = self.image.next_hole(data)?.min(range.end);
            if data > self.at && !self.piece(data, &mut [])? {
                return Ok(false);
            }
            // Not past a part of the hole that was written meanwhile: what it has now is looked up again.
            while (data..hole).contains(&self.at) {
                let end = hole.min(self.at + PIECE as u64);
                if !self.piece(end, &mut buffer[..(end - self.at) as usize])? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Copies up to `end`, by way of `buffer`; with an empty one, what was a hole up to `end` and still is.
    /// `false`: replication has ended.
    fn piece(&mut self, end: u64, buffer: &mut [u8]) -> Result<bool, ImageError> {
        let cost = Outbox::cost(1, buffer.len());
        if !self.outbox.reserve(cost, Origin::Copy) {
            return Ok(false);
        }
        let at = self.at;
        let _held = self.device.ranges.lock(at, end - at);
        let (end, change) = if buffer.is_empty() {
            // Looked at again: before the lock, the guest may have written into it.
            let end = end.min(self.image.next_data(at)?);
            if end == at {
                self.outbox.push(Vec::new(), cost, 0);
                return Ok(true);
            }
            (end, Change::zero(at, end - at, true))
        } else {
            (end, self.read(buffer)?)
        };
        self.outbox.push(vec![change], cost, self.covers);
        self.covers = end - at;
        self.done.add(end - at);
        self.at = end;
        Ok(true)
    }

    fn read(&self, piece: &mut [u8]) -> Result<Change, ImageError> {
        self.image.read(self.at, piece)?;
        Ok(contents(self.at, piece, &self.outbox.pool))
    }
}

/// Makes the standby's range the same as this one, of at most [`ZEROES`] bytes.
pub(crate) fn contents(offset: u64, data: &[u8], pool: &Pool) -> Change {
    match ZEROES.get(..data.len()) {
        Some(zeroes) if data == zeroes => Change::zero(offset, data.len() as u64, true),
        _ => Change::piece(offset, pool.copy(data)),
    }
}
