//! The initial copy: the image as it is, while the guest goes on writing.
//!
//! Piece by piece: the lock of the piece's range, what the image holds there, into the queue, unlock. A write to a
//! piece that was copied before follows the copy in the queue; one to a later piece precedes the copy, which then
//! reads it as well. So the standby, which carries out both in the queue's order, ends with the same image, and
//! whatever it had before is overwritten: holes are sent as zeroes.

use crate::device::Device;
use crate::outbox::{Origin, Outbox};
use crate::wire::Change;
use aventine_disk_common::image::{Image, ImageError, ZEROES};

/// A guest's write waits at most for the reading of so much.
const PIECE: usize = 256 << 10;

/// Copies the whole image. Ends early where replication does.
pub(crate) fn copy(device: &Device, image: &Image, outbox: &Outbox) {
    let mut copier = Copier { device, image, outbox, at: 0, covers: 0 };
    match copier.copy() {
        Ok(true) => outbox.push_copied(copier.covers),
        Ok(false) => {}
        Err(error) => outbox.fail(error.into()),
    }
}

struct Copier<'a> {
    device: &'a Device,
    image: &'a Image,
    outbox: &'a Outbox,
    at: u64,
    /// Length of the last piece. It counts as copied with the piece after it, the last of all with the end of the
    /// copy: whoever sees the copy complete can seal an epoch.
    covers: u64,
}

impl Copier<'_> {
    /// `false`: replication has ended.
    fn copy(&mut self) -> Result<bool, ImageError> {
        let mut buffer = vec![0; PIECE];
        while self.at < self.image.size() {
            let data = self.image.next_data(self.at)?;
            let hole = self.image.next_hole(data)?;
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
        self.at = end;
        Ok(true)
    }

    fn read(&self, piece: &mut [u8]) -> Result<Change, ImageError> {
        self.image.read(self.at, piece)?;
        if *piece == ZEROES[..piece.len()] {
            return Ok(Change::zero(self.at, piece.len() as u64, true));
        }
        Ok(Change::piece(self.at, piece.to_vec()))
    }
}
