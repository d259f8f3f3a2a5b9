//! Memory for a request's data, and how much of it a connection may take.

use std::sync::{Condvar, Mutex, PoisonError};

/// What data are aligned to: enough for every device that is read and written past the page cache.
const ALIGN: usize = 4096;
/// Bytes of a reply's head that fit before the data.
pub(crate) const HEAD_ROOM: usize = 64;
/// Longest data whose memory is kept for the next request.
const KEPT: usize = 1 << 20;

/// The data of a request at an aligned address, and room for a reply's head before it.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where the data begin.
    at: usize,
}

impl Buffer {
    /// Room for `len` bytes. It holds what was there before, as far as it was as long.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < self.at + len || self.bytes.is_empty() {
            self.bytes = vec![0; HEAD_ROOM + ALIGN + len];
            let first = self.bytes.as_ptr().addr() + HEAD_ROOM;
            self.at = HEAD_ROOM + first.next_multiple_of(ALIGN) - first;
        }
        &mut self.bytes[self.at..self.at + len]
    }

    /// `head`, and the `len` bytes that were given room last behind it.
    pub(crate) fn behind(&mut self, head: &[u8], len: usize) -> &[u8] {
        self.room(len);
        let start = self.at - head.len();
        self.bytes[start..self.at].copy_from_slice(head);
        &self.bytes[start..self.at + len]
    }

    /// Gives back what is more than most requests need.
    pub(crate) fn trim(&mut self) {
        if self.bytes.len() > HEAD_ROOM + ALIGN + KEPT {
            *self = Buffer::default();
        }
    }
}

/// How many bytes of data may be under way.
pub(crate) struct Budget {
    state: Mutex<State>,
    given: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    taken: usize,
    waited_for: bool,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Budget {
        Budget { state: Mutex::default(), given: Condvar::new(), limit }
    }

    /// Waits for room for `bytes`, at most the limit, and takes it. Only the reader does.
    pub(crate) fn take(&self, bytes: usize) {
        let full = |state: &mut State| {
            state.waited_for = state.taken + bytes > self.limit;
            state.waited_for
        };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.given.wait_while(state, full).unwrap_or_else(PoisonError::into_inner).taken += bytes;
    }

    pub(crate) fn give(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.taken -= bytes;
        let waited_for = state.waited_for;
        drop(state);
        if waited_for {
            self.given.notify_one();
        }
    }
}
