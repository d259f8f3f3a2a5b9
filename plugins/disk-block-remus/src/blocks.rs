//! Sets of blocks, and the sizes that everything about a disk's history is counted in.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block of all but huge disks, and the number of blocks that makes a disk huge: a set takes 2 MiB then.
const SMALLEST: u64 = 4 << 10;
const MOST: u64 = 1 << 24;
/// Bytes of a region: what is marked at once before the guest's first write there.
pub(crate) const REGION: u64 = 4 << 20;

/// Bytes of a block of a disk of `size` bytes: what a resync moves at least.
pub(crate) fn block_of(size: u64) -> u64 {
    size.div_ceil(MOST).next_power_of_two().clamp(SMALLEST, REGION)
}

/// The blocks of `unit` bytes that `len` bytes at `offset` touch.
pub(crate) fn touched(offset: u64, len: u64, unit: u64) -> Range<u64> {
    if len == 0 {
        return 0..0;
    }
    offset / unit..(offset + len - 1) / unit + 1
}

/// A set of numbers below a bound. Changed and read from several threads at once; every access is sequentially
/// consistent, which `history` relies on.
pub(crate) struct Blocks {
    words: Vec<AtomicU64>,
}

impl Blocks {
    /// An empty set of the blocks of a disk.
    pub(crate) fn of(size: u64, unit: u64) -> Blocks {
        let words = size.div_ceil(unit).div_ceil(64);
        Blocks { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().map(|w| w.load(Ordering::SeqCst))
    }

    /// Adds a range; answers whether something in it was missing.
    pub(crate) fn insert(&self, range: Range<u64>) -> bool {
        let mut missing = false;
        for (word, mask) in masks(range) {
            let word = &self.words[word];
            if word.load(Ordering::SeqCst) & mask != mask {
                missing |= word.fetch_or(mask, Ordering::SeqCst) & mask != mask;
            }
        }
        missing
    }

    pub(crate) fn contains(&self, range: Range<u64>) -> bool {
        masks(range).all(|(word, mask)| self.words[word].load(Ordering::SeqCst) & mask == mask)
    }

    /// Adds the bits of one word; `false`: there is no such word.
    pub(crate) fn or_word(&self, at: usize, bits: u64) -> bool {
        self.words.get(at).map(|w| w.fetch_or(bits, Ordering::SeqCst)).is_some()
    }

    /// Adds another set of the same bound.
    pub(crate) fn or(&self, other: &Blocks) {
        for (at, bits) in other.words().enumerate().filter(|(_, bits)| *bits != 0) {
            self.or_word(at, bits);
        }
    }

    /// Takes the bits of every word that has any.
    pub(crate) fn take(&self) -> Vec<(usize, u64)> {
        let taken = self.words.iter().enumerate().map(|(at, w)| (at, w.swap(0, Ordering::SeqCst)));
        taken.filter(|(_, bits)| *bits != 0).collect()
    }

    /// Removes what another set of the same bound has not; answers it, word by word.
    pub(crate) fn retain(&self, other: &Blocks) -> Vec<(usize, u64)> {
        let pairs = self.words.iter().zip(other.words()).enumerate();
        let removed = pairs.map(|(at, (w, keep))| (at, w.fetch_and(keep, Ordering::SeqCst) & !keep));
        removed.filter(|(_, bits)| *bits != 0).collect()
    }

    pub(crate) fn clear(&self) {
        self.words.iter().for_each(|w| w.store(0, Ordering::SeqCst));
    }

    /// The numbers in the set, as ranges, ascending.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (at, mut bits) in self.words().enumerate() {
            while bits != 0 {
                let from = u64::from(bits.trailing_zeros());
                let len = u64::from((bits >> from).trailing_ones());
                bits &= if from + len == 64 { 0 } else { u64::MAX << (from + len) };
                let start = at as u64 * 64 + from;
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end += len,
                    _ => ranges.push(start..start + len),
                }
            }
        }
        ranges
    }
}

/// The words that a range has bits in.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (word, from) = (at / 64, at % 64);
        let end = range.end.min((word + 1) * 64);
        let len = end - at;
        at = end;
        Some((word as usize, (u64::MAX >> (64 - len)) << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_of_blocks_stays_small() {
        assert_eq!(block_of(1), 4 << 10);
        assert_eq!(block_of(64 << 30), 4 << 10);
        assert_eq!(block_of((64 << 30) + 1), 8 << 10);
        assert_eq!(block_of(1 << 40), 64 << 10);
        assert_eq!(block_of(u64::MAX), REGION);
    }

    #[test]
    fn what_is_touched_is_whole_blocks() {
        assert_eq!(touched(0, 0, 10), 0..0);
        assert_eq!(touched(0, 10, 10), 0..1);
        assert_eq!(touched(9, 2, 10), 0..2);
        assert_eq!(touched(30, 1, 10), 3..4);
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(inserted in vec((0..300_u64, 0..150_u64), 0..12), asked in (0..300_u64, 0..150_u64)) {
            let blocks = Blocks::of(450 * 8, 8);
            let mut model = BTreeSet::new();
            for (from, len) in inserted {
                let range = from..from + len;
                prop_assert_eq!(blocks.insert(range.clone()), range.clone().any(|b| !model.contains(&b)));
                model.extend(range);
            }
            let asked = asked.0..asked.0 + asked.1;
            prop_assert_eq!(blocks.contains(asked.clone()), asked.clone().all(|b| model.contains(&b)));
            let ranges = blocks.ranges();
            prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start));
            prop_assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            let other = Blocks::of(450 * 8, 8);
            other.or(&blocks);
            prop_assert_eq!(other.ranges(), blocks.ranges());
            let kept = Blocks::of(450 * 8, 8);
            kept.insert(asked.clone());
            for (at, bits) in other.retain(&kept) {
                prop_assert!(blocks.words[at].load(Ordering::SeqCst) & bits == bits);
                blocks.words[at].fetch_and(!bits, Ordering::SeqCst);
            }
            prop_assert!(other.ranges().into_iter().flatten().all(|b| asked.contains(&b)));
            prop_assert_eq!(other.ranges(), blocks.ranges());
            for (at, bits) in blocks.take() {
                prop_assert!(bits != 0 && other.words[at].load(Ordering::SeqCst) == bits);
            }
            prop_assert_eq!(blocks.ranges(), []);
        }
    }
}
