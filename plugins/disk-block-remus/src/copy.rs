//! The initial copy: the image as it is, while the guest goes on writing.
//!
//! Piece by piece: the lock of the piece's range, what the image holds there, into the queue, unlock. A write to a
//! piece that was copied before follows the copy in the queue; one to a later piece precedes the copy, which then
//! reads it as well. So the standby, which carries out both in the queue's order, ends with the same image, and
//! whatever it had before is overwritten: holes are sent as zeroes.

use crate::device::Device;
use crate::image::{Extent, Image, ImageError, ZEROES};
use crate::outbox::{Origin, Outbox};
use crate::wire::Change;

/// A guest's write waits at most for the reading of so much.
const PIECE: usize = 256 << 10;

/// Copies the whole image. Ends early where replication does.
pub(crate) fn copy(device: &Device, image: &Image, outbox: &Outbox) {
    if let Err(error) = copy_pieces(device, image, outbox) {
        outbox.fail(error.into());
    }
}

fn copy_pieces(device: &Device, image: &Image, outbox: &Outbox) -> Result<(), ImageError> {
    let mut at = 0;
    // A piece counts as copied with the one after it, the last with the end of the copy: whoever sees the copy
    // complete can seal an epoch.
    let mut covers = 0;
    let mut buffer = vec![0; PIECE];
    while at < image.size() {
        let end = match image.extent(at)? {
            Extent::Hole { end } => end,
            Extent::Data { end } => end.min(at + PIECE as u64),
        };
        if !outbox.reserve(Outbox::cost(1, PIECE), Origin::Copy) {
            return Ok(());
        }
        let _held = device.ranges.lock(at, end - at);
        // Looked at again: before the lock the guest may have written into a hole.
        let (end, change) = match image.extent(at)? {
            Extent::Hole { end: hole } => {
                let end = end.min(hole);
                (end, Change::zero(at, end - at, true))
            }
            Extent::Data { end: data } => {
                let end = end.min(data).min(at + PIECE as u64);
                (end, read(image, at, &mut buffer[..(end - at) as usize])?)
            }
        };
        outbox.push(vec![change], Outbox::cost(1, PIECE), covers);
        covers = end - at;
        at = end;
    }
    outbox.push_copied(covers);
    Ok(())
}

fn read(image: &Image, at: u64, piece: &mut [u8]) -> Result<Change, ImageError> {
    image.read(at, piece)?;
    if *piece == ZEROES[..piece.len()] {
        return Ok(Change::zero(at, piece.len() as u64, true));
    }
    Ok(Change::piece(at, piece.to_vec()))
}
