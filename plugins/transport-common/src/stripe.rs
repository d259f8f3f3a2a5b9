//! A channel's bytes on several connections.
//!
//! ```text
//!  bytes        │ 0 … │ 65536 … │ 131072 … │ 196608 … │      stripes of 64 KiB, counted from the channel's first byte
//!  connection   │  0  │    1    │    2     │    0     │      of three
//! ```
//! Invariants:
//! - Where a byte goes depends on its place in the channel alone, never on how the bytes are handed over: both ends cut alike, and
//!   no numbers travel.
//! - What one connection carries of a piece is in order there; what several carry may be sent and received at the same time.

/// Bytes on one connection before it is the next one's turn. Part of the protocol.
pub(crate) const STRIPE: usize = 64 << 10;

/// Where in a channel its next byte is.
#[derive(Debug)]
pub(crate) struct Place {
    lanes: usize,
    lane: usize,
    /// Bytes that `lane` still takes; never 0.
    room: usize,
}

impl Place {
    /// The beginning of a channel of so many connections, at least one.
    pub(crate) fn new(lanes: usize) -> Place {
        Place { lanes, lane: 0, room: STRIPE }
    }

    /// The next byte's connection.
    pub(crate) fn lane(&self) -> usize {
        self.lane
    }

    /// Whether the next `len` bytes are all on [`Place::lane`].
    pub(crate) fn fits(&self, len: usize) -> bool {
        self.lanes == 1 || len <= self.room
    }

    /// Goes on by `len` bytes, no more than there is room for.
    fn step(&mut self, len: usize) {
        self.room -= len;
        if self.room == 0 {
            (self.lane, self.room) = ((self.lane + 1) % self.lanes, STRIPE);
        }
    }

    /// Goes on by bytes that fit.
    pub(crate) fn advance(&mut self, len: usize) {
        if self.lanes > 1 {
            self.step(len);
        }
    }

    /// What each connection carries of `parts`, in order.
    pub(crate) fn cut<'a>(&mut self, parts: &[&'a [u8]]) -> Vec<Vec<&'a [u8]>> {
        let mut cut = vec![Vec::with_capacity(parts.len() / self.lanes + 2); self.lanes];
        for &part in parts {
            let mut rest = part;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(self.room.min(rest.len()));
                cut[self.lane].push(piece);
                self.step(piece.len());
                rest = after;
            }
        }
        cut
    }

    /// What each connection carries of `buf`, in order.
    pub(crate) fn cut_mut<'a>(&mut self, mut buf: &'a mut [u8]) -> Vec<Vec<&'a mut [u8]>> {
        let mut cut: Vec<Vec<&mut [u8]>> = Vec::new();
        cut.resize_with(self.lanes, Vec::new);
        while !buf.is_empty() {
            let (piece, after) = buf.split_at_mut(self.room.min(buf.len()));
            let (lane, len) = (self.lane, piece.len());
            cut[lane].push(piece);
            self.step(len);
            buf = after;
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte by byte, as the layout says it.
    fn lane_of(at: usize, lanes: usize) -> usize {
        at / STRIPE % lanes
    }

    #[test]
    fn both_ends_cut_alike_however_the_bytes_are_handed_over() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize % below
        };
        for lanes in [1, 2, 3, 16] {
            let bytes: Vec<u8> = (0..lanes * STRIPE * 3 + 77).map(|_| random(256) as u8).collect();
            let mut model = vec![Vec::new(); lanes];
            bytes.iter().enumerate().for_each(|(at, byte)| model[lane_of(at, lanes)].push(*byte));
            let (mut sent, mut place, mut rest) =
                (vec![Vec::new(); lanes], Place::new(lanes), bytes.as_slice());
            while !rest.is_empty() {
                let mut parts = Vec::new();
                for _ in 0..random(5) {
                    let below = [10, 5000, 3 * STRIPE][random(3)];
                    let (part, after) = rest.split_at(random(below).min(rest.len()));
                    parts.push(part);
                    rest = after;
                }
                let len: usize = parts.iter().map(|p| p.len()).sum();
                let (fits, lane) = (place.fits(len), place.lane());
                let cut = place.cut(&parts);
                assert!(!fits || lanes == 1 || (0..lanes).all(|l| l == lane || cut[l].is_empty()));
                cut.iter().zip(&mut sent).for_each(|(cut, sent)| sent.extend(cut.concat()));
            }
            assert!(sent == model, "{lanes} connections");
            let (mut received, mut place, mut at) = (vec![0; bytes.len()], Place::new(lanes), 0);
            let mut lanes_left: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
            while at < bytes.len() {
                let len = (1 + random(2 * STRIPE)).min(bytes.len() - at);
                for (pieces, left) in
                    place.cut_mut(&mut received[at..at + len]).into_iter().zip(&mut lanes_left)
                {
                    for piece in pieces {
                        let (now, later) = left.split_at(piece.len());
                        piece.copy_from_slice(now);
                        *left = later;
                    }
                }
                at += len;
            }
            assert!(received == bytes, "{lanes} connections");
        }
    }
}
