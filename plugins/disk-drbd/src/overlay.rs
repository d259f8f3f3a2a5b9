//! What reads see above the device: the newest of the changes that are not on it, by ranges that do not overlap.
//!
//! Invariant: an extent lies inside of the one change that made it, so whoever knows a change's range finds all that is left
//! of it.

use aventine_disk_common::change::{Arrived, Change};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

#[derive(Clone)]
struct Extent {
    end: u64,
    change: Arc<Change>,
}

/// The extents.
#[derive(Default)]
pub(crate) struct Overlay {
    extents: BTreeMap<u64, Extent>,
}

/// A part of what a read asked for.
pub(crate) struct Piece {
    range: Range<u64>,
    change: Arc<Change>,
}

impl Piece {
    /// Puts it where it belongs in `buf`, which begins at `offset`.
    pub(crate) fn fill(&self, offset: u64, buf: &mut [u8]) {
        let to = &mut buf[(self.range.start - offset) as usize..(self.range.end - offset) as usize];
        match self.change.arrived() {
            Arrived::Write { offset: from, data } => {
                to.copy_from_slice(&data[(self.range.start - from) as usize..][..to.len()]);
            }
            Arrived::Zero { .. } => to.fill(0),
        }
    }
}

impl Overlay {
    /// Lays a change over everything before it.
    pub(crate) fn insert(&mut self, change: &Arc<Change>) {
        let range = change.range();
        self.carve(&range);
        self.extents.insert(range.start, Extent { end: range.end, change: Arc::clone(change) });
    }

    /// Takes away what is left of a change that is on the device now.
    pub(crate) fn remove(&mut self, change: &Arc<Change>) {
        let old = self.extents.range(change.range()).filter(|(_, e)| Arc::ptr_eq(&e.change, change));
        let old: Vec<u64> = old.map(|(start, _)| *start).collect();
        for start in old {
            self.extents.remove(&start);
        }
    }

    /// What there is in a range.
    pub(crate) fn find(&self, range: &Range<u64>) -> Vec<Piece> {
        let before = self.extents.range(..range.start).next_back().filter(|(_, e)| e.end > range.start);
        let within = self.extents.range(range.clone());
        before
            .into_iter()
            .chain(within)
            .map(|(start, extent)| Piece {
                range: range.start.max(*start)..range.end.min(extent.end),
                change: Arc::clone(&extent.change),
            })
            .collect()
    }

    pub(crate) fn clear(&mut self) {
        self.extents.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Empties a range; what reaches out of it on either side stays.
    fn carve(&mut self, range: &Range<u64>) {
        if let Some((_, before)) = self.extents.range_mut(..range.start).next_back()
            && before.end > range.start
        {
            let behind = (before.end > range.end).then(|| before.clone());
            before.end = range.start;
            if let Some(behind) = behind {
                self.extents.insert(range.end, behind);
            }
        }
        let within: Vec<u64> = self.extents.range(range.clone()).map(|(start, _)| *start).collect();
        for start in within {
            if let Some(extent) = self.extents.remove(&start)
                && extent.end > range.end
            {
                self.extents.insert(range.end, extent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SIZE: usize = 200;

    proptest! {
        #[test]
        fn reads_see_the_newest(
            changes in vec((0..SIZE, 1..60_usize, any::<u8>()), 0..40),
            gone in 0..40_usize,
        ) {
            let (mut overlay, mut model) = (Overlay::default(), vec![None; SIZE]);
            let mut all = Vec::new();
            for (number, (at, len, byte)) in changes.into_iter().enumerate() {
                let len = len.min(SIZE - at);
                let change = Arc::new(if byte == 0 {
                    Change::zero(at as u64, len as u64, true)
                } else {
                    Change::piece(at as u64, vec![byte; len])
                });
                overlay.insert(&change);
                model[at..at + len].fill(Some((number, byte)));
                all.push(change);
            }
            all.iter().take(gone).for_each(|change| overlay.remove(change));
            for (from, to) in [(0, SIZE), (13, 77), (50, 51)] {
                let mut buf = vec![0xee; to - from];
                for piece in overlay.find(&(from as u64..to as u64)) {
                    piece.fill(from as u64, &mut buf);
                }
                let due: Vec<u8> = model[from..to]
                    .iter()
                    .map(|byte| byte.filter(|(number, _)| *number >= gone).map_or(0xee, |(_, byte)| byte))
                    .collect();
                prop_assert_eq!(buf, due);
            }
        }
    }
}
