//! The accounts of a ring: what a sender may write, and what a receiver has.
//!
//! ```text
//!  sender's copy     ┌──────── in flight ────────┐
//!     ▼ written      │                           │ free = length - (written - settled)
//!  ───┴──────────────┴───────────────────────────┴───► positions, counted from the first byte and never wrapped
//!                    ▲ settled: completed here and consumed there
//!
//!  receiver's ring   ▲ told ≤ ▲ consumed ≤ ▲ received          told: what the sender knows to be consumed
//! ```
//! Both memories have the same length, and a byte lies at the same place in both: its position modulo the length. A message is
//! one write; its immediate is the position behind it, a credit's immediate the position up to which all is consumed, both
//! modulo 2^31.
//!
//! Beside the ring, the receiver may have buffers that it lends to its caller, and the sender writes long messages there:
//! ```text
//!  receiver:   free ──offered──► the sender's to write ──filled──► next in the stream ──► the caller's ──dropped──► free
//! ```
//! The sender fills them in the order in which they were offered. An immediate with [`LENT`] in it is, from the sender, the length
//! of such a message, and from the receiver the number of a buffer that it offers; the first [`OFFERS`] are so from the beginning.
//! In the ring such a message takes one byte, to which nothing is written: so messages and credits need no other account.
//!
//! Invariants:
//! - At most the ring's length and at most [`MESSAGES`] messages are in flight: no write reaches what is not consumed yet, and
//!   there is a receive request for each.
//! - At most [`CREDITS`] credits are in flight, though nobody may look at them for long: each stands for a quarter of the bytes
//!   or of the messages. At most [`OFFERS`] buffers are offered and not filled.
//! - A buffer that the caller has is not offered: nobody who keeps to the rules writes to it.

use std::collections::VecDeque;

/// Most messages in flight in one direction.
pub(crate) const MESSAGES: u32 = 128;
/// Most credits in flight.
pub(crate) const CREDITS: u32 = 16;
/// Most buffers that are offered at a time.
pub(crate) const OFFERS: u32 = 16;
/// Marks immediates that are about buffers.
const LENT: u32 = 1 << 31;

/// A position that cannot be: the other side does not keep to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it told {told:#x}, which is not possible after {known:#x}")]
pub(crate) struct Impossible {
    known: u64,
    told: u32,
}

/// The position that `told` stands for, from `known` on and at most `most` further.
fn position(known: u64, told: u32, most: u64) -> Result<u64, Impossible> {
    let further = u64::from(told.wrapping_sub(known as u32) & !LENT);
    if further <= most { Ok(known + further) } else { Err(Impossible { known, told }) }
}

/// What tells of a position.
pub(crate) fn immediate(position: u64) -> u32 {
    position as u32 & !LENT
}

/// A place in the ring, or in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// The sender's account.
pub(crate) struct Outbox {
    len: u64,
    /// Longest message.
    most: u64,
    written: u64,
    completed: u64,
    consumed: u64,
    /// Where the messages in flight end.
    ends: VecDeque<u64>,
    /// How many buffers the other side has.
    buffers: u32,
    /// Those that may be written to.
    offered: VecDeque<u32>,
}

impl Outbox {
    /// For a ring of `len` bytes, less than 2^30, messages of at most `most`, and so many buffers.
    pub(crate) fn new(len: usize, most: usize, buffers: u32) -> Outbox {
        let ends = VecDeque::with_capacity(MESSAGES as usize);
        let (len, most, offered) = (len as u64, most as u64, (0..buffers.min(OFFERS)).collect());
        Outbox { len, most, written: 0, completed: 0, consumed: 0, ends, buffers, offered }
    }

    fn settled(&self) -> u64 {
        self.completed.min(self.consumed)
    }

    /// Where the next message may lie; `None` while there is no room.
    pub(crate) fn room(&self) -> Option<Span> {
        let at = self.written % self.len;
        let free = self.len - (self.written - self.settled());
        let len = free.min(self.len - at).min(self.most);
        (len > 0 && self.ends.len() < MESSAGES as usize)
            .then_some(Span { at: at as usize, len: len as usize })
    }

    /// A message of `len` bytes was written where [`Self::room`] said; answers the position behind it.
    pub(crate) fn wrote(&mut self, len: usize) -> u64 {
        self.written += len as u64;
        self.ends.push_back(self.written);
        self.written
    }

    /// The buffer that the next long message may go to, if one is offered.
    pub(crate) fn offer(&self) -> Option<u32> {
        self.offered.front().copied()
    }

    /// That buffer is filled with `len` bytes, while there is [`Self::room`]; answers the position behind the message, and its
    /// immediate.
    pub(crate) fn filled(&mut self, len: usize) -> (u64, u32) {
        self.offered.pop_front();
        (self.wrote(1), LENT | len as u32)
    }

    /// All that was written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The message that ends there has been taken over by the other side's memory.
    pub(crate) fn completed(&mut self, end: u64) {
        self.completed = end;
        self.settle();
    }

    /// A credit came, or an offer.
    pub(crate) fn heard(&mut self, told: u32) -> Result<(), Impossible> {
        if told & LENT == 0 {
            return self.credited(told);
        }
        let buffer = told & !LENT;
        if buffer >= self.buffers || self.offered.len() == OFFERS as usize || self.offered.contains(&buffer) {
            return Err(Impossible { known: self.consumed, told });
        }
        self.offered.push_back(buffer);
        Ok(())
    }

    fn credited(&mut self, told: u32) -> Result<(), Impossible> {
        self.consumed = position(self.consumed, told, self.written - self.consumed)?;
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        let settled = self.settled();
        while self.ends.front().is_some_and(|end| *end <= settled) {
            self.ends.pop_front();
        }
    }

    /// Whether all that was written has been taken over.
    pub(crate) fn is_flushed(&self) -> bool {
        self.completed == self.written
    }
}

/// What has come, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// In the ring, up to this position.
    Ring(u64),
    /// In a buffer, of which the first bytes may be consumed.
    Lent { buffer: u32, consumed: usize, len: usize },
}

/// Where the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// In the ring.
    Ring(Span),
    /// In a buffer.
    Lent(u32, Span),
}

/// The receiver's account.
pub(crate) struct Inbox {
    len: u64,
    received: u64,
    consumed: u64,
    told: u64,
    /// Not consumed.
    messages: VecDeque<Message>,
    /// Messages consumed since the last credit.
    finished: u32,
    /// Length of a buffer.
    bytes: usize,
    /// Buffers that the sender may write to, or has written to without having said so.
    offered: VecDeque<u32>,
}

impl Inbox {
    /// For a ring of `len` bytes, less than 2^30, and `buffers` buffers of `bytes` bytes, less than 2^31.
    pub(crate) fn new(len: usize, buffers: u32, bytes: usize) -> Inbox {
        let (len, messages) = (len as u64, VecDeque::with_capacity(MESSAGES as usize));
        let offered = (0..buffers.min(OFFERS)).collect();
        Inbox { len, received: 0, consumed: 0, told: 0, messages, finished: 0, bytes, offered }
    }

    /// A message came.
    pub(crate) fn arrived(&mut self, told: u32) -> Result<(), Impossible> {
        let (known, impossible) = (self.received, Impossible { known: self.received, told });
        let room = self.len - (known - self.told);
        if room == 0 || self.messages.len() == MESSAGES as usize {
            return Err(impossible);
        }
        let (end, message) = if told & LENT == 0 {
            let end = position(known, told, room)?;
            (end, Message::Ring(end))
        } else {
            let len = (told & !LENT) as usize;
            if len == 0 || len > self.bytes {
                return Err(impossible);
            }
            let buffer = self.offered.pop_front().ok_or(impossible)?;
            (known + 1, Message::Lent { buffer, consumed: 0, len })
        };
        if end == known {
            return Err(impossible);
        }
        self.received = end;
        self.messages.push_back(message);
        Ok(())
    }

    /// Where the next bytes are; `None` while there are none.
    pub(crate) fn ready(&self) -> Option<Ready> {
        Some(match *self.messages.front()? {
            Message::Ring(end) => {
                let at = self.consumed % self.len;
                let len = (end - self.consumed).min(self.len - at);
                Ready::Ring(Span { at: at as usize, len: len as usize })
            }
            Message::Lent { buffer, consumed, len } => {
                Ready::Lent(buffer, Span { at: consumed, len: len - consumed })
            }
        })
    }

    /// The first `len` bytes of what was ready are consumed; answers the buffer that is free by that.
    pub(crate) fn took(&mut self, len: usize) -> Option<u32> {
        let (done, free) = match self.messages.front_mut()? {
            Message::Ring(end) => {
                self.consumed += len as u64;
                (self.consumed >= *end, None)
            }
            Message::Lent { buffer, consumed, len: all } => {
                *consumed += len;
                let done = *consumed >= *all;
                self.consumed += u64::from(done);
                (done, done.then_some(*buffer))
            }
        };
        if done {
            self.messages.pop_front();
            self.finished += 1;
        }
        free
    }

    /// If the next `len` bytes are those of a buffer, all of them, that buffer is the caller's.
    pub(crate) fn take(&mut self, len: usize) -> Option<u32> {
        match self.messages.front()? {
            Message::Lent { consumed: 0, len: all, .. } if *all == len => self.took(len),
            _ => None,
        }
    }

    /// Whether more buffers may be offered.
    pub(crate) fn wants_offer(&self) -> bool {
        self.offered.len() < OFFERS as usize
    }

    /// That free buffer is offered; answers what tells the sender so.
    pub(crate) fn offer(&mut self, buffer: u32) -> u32 {
        self.offered.push_back(buffer);
        LENT | buffer
    }

    /// The credit that is due, if one is.
    pub(crate) fn due(&self) -> Option<u32> {
        let due = self.consumed - self.told >= self.len / 4 || self.finished >= MESSAGES / 4;
        due.then_some(immediate(self.consumed))
    }

    /// That credit is on its way.
    pub(crate) fn told(&mut self) {
        self.told = self.consumed;
        self.finished = 0;
    }
}

#[cfg(test)]
mod tests;
