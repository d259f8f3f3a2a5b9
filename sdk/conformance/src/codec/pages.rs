//! Contents of pages, and numbers that are random and the same each time.

use aventine_api::{PAGE_SIZE, PageRun};

/// Random numbers by a fixed seed (xorshift64*).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not zero.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    pub(super) fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(bytes).collect()
    }
}

/// What is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zeros,
    /// Incompressible.
    Noise,
    /// Short words, over and over.
    Text,
    /// What was there, with a few bytes changed.
    Touched,
    /// What was there.
    Same,
}

pub(super) const CONTENTS: [Content; 5] =
    [Content::Noise, Content::Touched, Content::Zeros, Content::Text, Content::Same];

impl Content {
    /// Fills memory, of whole pages.
    pub(super) fn fill(self, memory: &mut [u8], dice: &mut Dice) {
        match self {
            Content::Zeros => memory.fill(0),
            Content::Noise => memory.copy_from_slice(&dice.noise(memory.len())),
            Content::Text => {
                let word = [b"epoch ", b"commit", b" seal ", b"guest "][dice.below(4)];
                memory.iter_mut().zip(word.iter().cycle()).for_each(|(to, from)| *to = *from);
            }
            Content::Touched => {
                for page in memory.chunks_exact_mut(PAGE_SIZE) {
                    for _ in 0..=dice.below(6) {
                        page[dice.below(PAGE_SIZE)] = dice.next() as u8;
                    }
                    // The page's very ends are where a codec's lengths go wrong.
                    page[[0, PAGE_SIZE - 1][dice.below(2)]] ^= 0x5a;
                }
            }
            Content::Same => {}
        }
    }
}

/// Pages of one batch: first page and number of pages of each run, ascending, apart or side by side.
pub(super) type Shape = Vec<(u64, u64)>;

/// How many pages a shape has.
pub(super) fn count(shape: &[(u64, u64)]) -> u64 {
    shape.iter().map(|(_, pages)| pages).sum()
}

/// The runs of a shape, with their contents in `memory`.
pub(super) fn runs<'a>(memory: &'a [u8], shape: &[(u64, u64)]) -> Vec<PageRun<'a>> {
    let run = |&(first_page, pages): &(u64, u64)| {
        let data = &memory[first_page as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE];
        PageRun { first_page, data }
    };
    shape.iter().map(run).collect()
}

/// A shape of a few runs anywhere in a guest of so many pages.
pub(super) fn any_shape(dice: &mut Dice, guest_pages: u64) -> Shape {
    let mut shape = Vec::new();
    let mut at = dice.below(12) as u64;
    while at < guest_pages && shape.len() < 8 {
        let pages = (1 + dice.below(9) as u64).min(guest_pages - at);
        shape.push((at, pages));
        at += pages + dice.below(20) as u64;
    }
    shape
}
