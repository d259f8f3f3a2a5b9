use std::ptr::NonNull;

/// Bytes in a guest page, everywhere in Aventine.
pub const PAGE_SIZE: usize = 4096;

/// A piece of guest memory, mapped in this process.
///
/// Guest pages are numbered from 0 through all regions, in the order the plugin lists them, without gaps: page
/// numbers are positions in guest RAM, not guest-physical addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Number of the region's first page.
    pub first_page: u64,
    /// Pages in the region.
    pub pages: u64,
    /// The mapping: readable on the primary, on the standby also writable until the guest is activated, and valid until
    /// the guest plugin is dropped. The guest may change its contents at any time while it runs.
    pub host: NonNull<u8>,
}

/// Consecutive guest pages and their contents.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PageRun<'a> {
    /// Number of the first page.
    pub first_page: u64,
    /// The contents, a whole number of pages.
    pub data: &'a [u8],
}

/// One bit for each guest page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl PageBitmap {
    /// A bitmap of `pages` clear bits.
    pub fn new(pages: u64) -> PageBitmap {
        PageBitmap { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// Number of pages it covers.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The bits, 64 to a word, the lowest first. Bits past the last page are clear.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Sets every bit that is set in `words`, as [`PageBitmap::words`] of as many pages gives them.
    ///
    /// # Panics
    /// When `words` are those of another number of pages.
    pub fn merge_words(&mut self, words: &[u64]) {
        assert_eq!(self.words.len(), words.len(), "bitmaps cover the same pages");
        for (a, b) in self.words.iter_mut().zip(words) {
            *a |= b;
        }
    }

    /// Sets `count` bits from `first` on.
    ///
    /// # Panics
    /// When the range reaches past the end.
    pub fn set_range(&mut self, first: u64, count: u64) {
        let end =
            first.checked_add(count).filter(|&e| e <= self.pages).expect("range lies inside the bitmap");
        let mut at = first;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = if bits == 64 { u64::MAX } else { ((1u64 << bits) - 1) << (at % 64) };
            self.words[(at / 64) as usize] |= mask;
            at += bits;
        }
    }

    /// Whether a page's bit is set.
    pub fn contains(&self, page: u64) -> bool {
        page < self.pages && self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Sets every bit that is set in `other`, which covers as many pages.
    pub fn merge(&mut self, other: &PageBitmap) {
        assert_eq!(self.pages, other.pages, "bitmaps cover the same pages");
        self.merge_words(&other.words);
    }

    /// The set bits as runs of `(first page, pages)`, ascending, each as long as possible.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs_from(0)
    }

    /// Like [`PageBitmap::runs`], without the pages before `at`.
    pub fn runs_from(&self, mut at: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            let end = self.next(first, false).unwrap_or(self.pages);
            at = end;
            Some((first, end - first))
        })
    }

    /// The first page from `at` on whose bit is `set`.
    fn next(&self, at: u64, set: bool) -> Option<u64> {
        let mut word = (at / 64) as usize;
        let flip = if set { 0 } else { u64::MAX };
        let mut bits = (self.words.get(word)? ^ flip) & (u64::MAX << (at % 64));
        while bits == 0 {
            word += 1;
            bits = self.words.get(word)? ^ flip;
        }
        let page = word as u64 * 64 + u64::from(bits.trailing_zeros());
        (page < self.pages).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_word_borders_and_end_with_the_bitmap() {
        let mut map = PageBitmap::new(200);
        for (first, count) in [(0, 1), (60, 10), (128, 64), (199, 1)] {
            map.set_range(first, count);
        }
        assert_eq!(map.runs().collect::<Vec<_>>(), [(0, 1), (60, 10), (128, 64), (199, 1)]);
        assert_eq!(map.runs_from(65).collect::<Vec<_>>(), [(65, 5), (128, 64), (199, 1)]);
        assert_eq!(map.count(), 76);
        assert!(map.contains(69) && !map.contains(70) && !map.contains(200));
        let mut all = PageBitmap::new(200);
        all.set_range(0, 200);
        assert_eq!(all.runs().collect::<Vec<_>>(), [(0, 200)]);
        map.merge(&all);
        assert_eq!(map, all);
        map.clear();
        assert_eq!(map.runs().next(), None);
    }

    #[test]
    #[should_panic(expected = "range lies inside the bitmap")]
    fn a_range_past_the_end_is_a_defect() {
        PageBitmap::new(10).set_range(8, 3);
    }
}
