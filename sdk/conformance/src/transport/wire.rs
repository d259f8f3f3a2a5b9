//! Bytes that show any loss, repetition or exchange.

use crate::suite::Seen;
use aventine_api::{ChannelRx, ChannelTx};

/// Bytes `at..at + len` of stream `stream`.
pub(crate) fn bytes(stream: u32, at: usize, len: usize) -> Vec<u8> {
    let word =
        |number: usize| (number as u32 ^ stream.rotate_left(13)).wrapping_mul(2_654_435_761).to_le_bytes();
    let (first, skip) = (at / 4, at % 4);
    (first..(at + len).div_ceil(4)).flat_map(word).skip(skip).take(len).collect()
}

/// How a stream is cut into sends, each of so many parts of so many bytes.
pub(crate) const CUTS: [&[usize]; 14] = [
    &[],
    &[0],
    &[1],
    &[0, 1, 0, 0, 2, 0],
    &[4096],
    &[28, 4096, 4096, 4096],
    &[65_535],
    &[65_536, 1],
    &[3, 1 << 20],
    &[0, 0, 7],
    &[100_000, 0, 100_000, 1],
    &[5 << 20],
    &[],
    &[1],
];

/// Sends the stream; then `many` parts of odd sizes in one call.
pub(crate) fn send_stream(tx: &mut dyn ChannelTx, stream: u32, many: usize) -> Result<usize, String> {
    let mut at = 0;
    let odd: Vec<usize> = (0..many).map(|n| (n * 37) % 211).collect();
    for cut in CUTS.into_iter().chain([odd.as_slice()]) {
        let parts: Vec<Vec<u8>> = cut
            .iter()
            .map(|len| {
                let part = bytes(stream, at, *len);
                at += len;
                part
            })
            .collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        tx.send(&parts).map_err(|e| format!("`send` failed: {}", e.chain()))?;
    }
    Ok(at)
}

/// Receives `len` bytes of the stream, in pieces that fit no send.
pub(crate) fn expect_stream(rx: &mut dyn ChannelRx, stream: u32, len: usize) -> Seen {
    let (mut at, mut pieces) = (0, [1, 0, 4095, 70_001, 3, 1 << 20].into_iter().cycle());
    while at < len {
        let piece = pieces.next().unwrap_or(1).min(len - at);
        expect(rx, stream, at, piece)?;
        at += piece;
    }
    Ok(())
}

/// Receives these bytes of the stream.
pub(crate) fn expect(rx: &mut dyn ChannelRx, stream: u32, at: usize, len: usize) -> Seen {
    // Not zeros: what a broken `recv` leaves as it was must show.
    let mut got = vec![0xee; len];
    rx.recv(&mut got).map_err(|e| format!("`recv` of bytes {at} to {} failed: {}", at + len, e.chain()))?;
    match got.iter().zip(bytes(stream, at, len)).position(|(got, due)| *got != due) {
        Some(wrong) => Err(format!("byte {} of stream {stream} is not what was sent", at + wrong)),
        None => Ok(()),
    }
}
