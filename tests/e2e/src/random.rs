//! Random numbers that depend on the time, too: a guest that lives through the same moment again does something else,
//! and does not cover what it did the first time.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Default for Random {
    fn default() -> Random {
        Random(0x2545_f491_4f6c_dd1d)
    }
}

impl Random {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of the numbers below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 16) as usize % limit
    }
}
