//! Long buffers that are used again. Fresh ones cost a page fault for each page, which is more than what is done with them.

use crate::lock;
use std::sync::Mutex;

/// Shorter buffers are not worth keeping.
const LONG: usize = 64 << 10;

/// Buffers that nobody uses now.
pub struct Pool {
    spare: Mutex<Spare>,
    most: usize,
}

#[derive(Default)]
struct Spare {
    /// The last one was used last: some of it may still be in the processor's cache.
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    /// Keeps at most `most` bytes.
    pub fn new(most: usize) -> Pool {
        Pool { spare: Mutex::default(), most }
    }

    /// A buffer with whatever it held last, or an empty one.
    pub fn take(&self) -> Vec<u8> {
        let mut spare = lock(&self.spare);
        let buffer = spare.buffers.pop().unwrap_or_default();
        spare.bytes -= buffer.capacity();
        buffer
    }

    /// A copy of `data`.
    pub fn copy(&self, data: &[u8]) -> Vec<u8> {
        if data.len() < LONG {
            return data.to_vec();
        }
        let mut buffer = self.take();
        buffer.clear();
        buffer.extend_from_slice(data);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if bytes < LONG {
            return;
        }
        let mut spare = lock(&self.spare);
        // Dropped outside of the lock otherwise.
        if spare.bytes + bytes <= self.most {
            spare.bytes += bytes;
            spare.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_buffers_are_used_again_up_to_a_limit() {
        let pool = Pool::new(3 * LONG);
        let buffers = [0, 1, 2, 3].map(|n| pool.copy(&vec![n; LONG]));
        let addresses = buffers.each_ref().map(|b| b.as_ptr().addr());
        buffers.into_iter().for_each(|b| pool.give(b));
        pool.give(vec![1; 10]);
        for n in [2, 1, 0] {
            let buffer = pool.copy(&vec![7; LONG]);
            assert_eq!((buffer.as_ptr().addr(), buffer.len()), (addresses[n], LONG));
            assert!(buffer.iter().all(|b| *b == 7));
        }
        assert_eq!(pool.take().capacity(), 0, "none is left");
    }
}
