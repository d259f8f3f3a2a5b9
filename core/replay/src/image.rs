//! The memory of a recorded guest.

use aventine_api::{ErrorCode, PAGE_SIZE, PageBitmap, PageRun, PageSink, PluginError};
use std::collections::BTreeMap;

/// Most pages: 256 GiB.
pub(crate) const LIMIT: u64 = 1 << 26;
/// Pages of a piece.
const PIECE: u64 = 512;

/// Pages that an image cannot give in one slice.
#[derive(Debug, thiserror::Error)]
#[error("{pages} pages from page {first} on are not all in one piece of memory")]
struct PiecesError {
    first: u64,
    pages: u64,
}

/// Guest memory, and which pages were written to. It is made of pieces, which are there once they are used.
pub(crate) struct Image {
    pieces: BTreeMap<u64, Box<[u8]>>,
    pub(crate) written: PageBitmap,
}

impl Image {
    pub(crate) fn new() -> Image {
        Image { pieces: BTreeMap::new(), written: PageBitmap::new(LIMIT) }
    }

    /// The written pages in batches of at most `most` pages.
    pub(crate) fn batches(&self, most: u64) -> Vec<Vec<PageRun<'_>>> {
        let (mut batches, mut batch, mut room) = (Vec::new(), Vec::new(), most);
        for (mut first, mut left) in self.written.runs() {
            while left > 0 {
                let count = left.min(room).min(PIECE - first % PIECE);
                batch.push(PageRun { first_page: first, data: self.slice(first, count) });
                (first, left, room) = (first + count, left - count, room - count);
                if room == 0 {
                    batches.push(std::mem::take(&mut batch));
                    room = most;
                }
            }
        }
        batches.extend((!batch.is_empty()).then_some(batch));
        batches
    }

    fn slice(&self, first: u64, pages: u64) -> &[u8] {
        let from = (first % PIECE) as usize * PAGE_SIZE;
        self.pieces.get(&(first / PIECE)).map_or(&[], |piece| &piece[from..from + pages as usize * PAGE_SIZE])
    }

    /// The first page that differs between two images. What an image does not have is zero.
    pub(crate) fn difference(&self, other: &Image) -> Option<u64> {
        let numbers = self.pieces.keys().chain(other.pieces.keys());
        let number = *numbers.filter(|n| self.piece(**n) != other.piece(**n)).min()?;
        let (ours, theirs) = (self.piece(number).chunks(PAGE_SIZE), other.piece(number).chunks(PAGE_SIZE));
        let page = ours.zip(theirs).position(|(a, b)| a != b)?;
        Some(number * PIECE + page as u64)
    }

    fn piece(&self, number: u64) -> &[u8] {
        const NONE: &[u8] = &[0; PIECE as usize * PAGE_SIZE];
        self.pieces.get(&number).map_or(NONE, |piece| piece)
    }
}

impl PageSink for Image {
    fn pages(&mut self, first_page: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        let from = first_page % PIECE;
        if first_page.checked_add(pages).is_none_or(|end| end > LIMIT) || from.saturating_add(pages) > PIECE {
            return Err(PluginError::new(ErrorCode::Internal, PiecesError { first: first_page, pages }));
        }
        self.written.set_range(first_page, pages);
        let empty = || vec![0; PIECE as usize * PAGE_SIZE].into_boxed_slice();
        let piece = self.pieces.entry(first_page / PIECE).or_insert_with(empty);
        Ok(&mut piece[from as usize * PAGE_SIZE..(from + pages) as usize * PAGE_SIZE])
    }
}
