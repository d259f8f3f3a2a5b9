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
//! modulo 2^32.
//!
//! Invariants:
//! - At most the ring's length and at most [`MESSAGES`] messages are in flight: no write reaches what is not consumed yet, and
//!   there is a receive request for each.
//! - At most [`CREDITS`] credits are in flight, though nobody may look at them for long: each stands for a quarter of the bytes
//!   or of the messages.

use std::collections::VecDeque;

/// Most messages in flight in one direction.
pub(crate) const MESSAGES: u32 = 128;
/// Most credits in flight.
pub(crate) const CREDITS: u32 = 16;

/// A position that cannot be: the other side does not keep to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {told:#x} is not possible after {known:#x}")]
pub(crate) struct Impossible {
    known: u64,
    told: u32,
}

/// The position that `told` stands for, from `known` on and at most `most` further.
fn position(known: u64, told: u32, most: u64) -> Result<u64, Impossible> {
    let further = u64::from(told.wrapping_sub(known as u32));
    if further <= most { Ok(known + further) } else { Err(Impossible { known, told }) }
}

/// A place in the ring.
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
}

impl Outbox {
    /// For a ring of `len` bytes, less than 2^31, and messages of at most `most`.
    pub(crate) fn new(len: usize, most: usize) -> Outbox {
        let ends = VecDeque::with_capacity(MESSAGES as usize);
        Outbox { len: len as u64, most: most as u64, written: 0, completed: 0, consumed: 0, ends }
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

    /// The message that ends there has been taken over by the other side's memory.
    pub(crate) fn completed(&mut self, end: u64) {
        self.completed = end;
        self.settle();
    }

    /// A credit came.
    pub(crate) fn credited(&mut self, told: u32) -> Result<(), Impossible> {
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

/// The receiver's account.
pub(crate) struct Inbox {
    len: u64,
    received: u64,
    consumed: u64,
    told: u64,
    /// Where messages end that are not consumed.
    ends: VecDeque<u64>,
    /// Messages consumed since the last credit.
    finished: u32,
}

impl Inbox {
    /// For a ring of `len` bytes, less than 2^31.
    pub(crate) fn new(len: usize) -> Inbox {
        let ends = VecDeque::with_capacity(MESSAGES as usize);
        Inbox { len: len as u64, received: 0, consumed: 0, told: 0, ends, finished: 0 }
    }

    /// A message came.
    pub(crate) fn arrived(&mut self, told: u32) -> Result<(), Impossible> {
        let known = self.received;
        let end = position(known, told, self.len - (known - self.told))?;
        if end == known || self.ends.len() == MESSAGES as usize {
            return Err(Impossible { known, told });
        }
        self.received = end;
        self.ends.push_back(end);
        Ok(())
    }

    /// Where the next bytes are; `None` while there are none.
    pub(crate) fn ready(&self) -> Option<Span> {
        let at = self.consumed % self.len;
        let len = (self.received - self.consumed).min(self.len - at);
        (len > 0).then_some(Span { at: at as usize, len: len as usize })
    }

    /// The first `len` bytes of what was ready are consumed.
    pub(crate) fn took(&mut self, len: usize) {
        self.consumed += len as u64;
        while self.ends.front().is_some_and(|end| *end <= self.consumed) {
            self.ends.pop_front();
            self.finished += 1;
        }
    }

    /// The credit that is due, if one is.
    pub(crate) fn due(&self) -> Option<u32> {
        let due = self.consumed - self.told >= self.len / 4 || self.finished >= MESSAGES / 4;
        due.then_some(self.consumed as u32)
    }

    /// That credit is on its way.
    pub(crate) fn told(&mut self) {
        self.told = self.consumed;
        self.finished = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What both sides do, in any order that the wire allows.
    #[derive(Clone, Debug)]
    enum Step {
        Write(usize),
        Complete,
        Arrive,
        Take(usize),
        Credit,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..400usize).prop_map(Step::Write),
            2 => Just(Step::Complete),
            3 => Just(Step::Arrive),
            3 => (1..500usize).prop_map(Step::Take),
            1 => Just(Step::Credit),
        ];
        proptest::collection::vec(step, 1..600)
    }

    proptest! {
        /// Against plain memory: every byte arrives, in order, nothing is overwritten before it was consumed, and neither queue
        /// overflows.
        #[test]
        fn a_ring_loses_nothing_and_overwrites_nothing(steps in steps(), begin in any::<u32>()) {
            const LEN: usize = 1024;
            let begin = u64::from(begin) / LEN as u64 * LEN as u64;
            let (mut outbox, mut inbox) = (Outbox::new(LEN, 256), Inbox::new(LEN));
            // As after many bytes: the immediates wrap.
            (outbox.written, outbox.completed, outbox.consumed) = (begin, begin, begin);
            (inbox.received, inbox.consumed, inbox.told) = (begin, begin, begin);
            let mut ring = [0u64; LEN];
            let (mut sent, mut seen) = (0u64, 0u64);
            let (mut uncompleted, mut wire, mut credits) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
            for step in steps {
                match step {
                    Step::Write(len) => if let Some(span) = outbox.room() {
                        let len = len.min(span.len);
                        let data: Vec<u64> = (sent..sent + len as u64).collect();
                        sent += len as u64;
                        let end = outbox.wrote(len);
                        uncompleted.push_back(end);
                        wire.push_back((span.at, data, end as u32));
                    },
                    Step::Complete => {
                        // Only what has arrived.
                        if uncompleted.len() > wire.len() {
                            outbox.completed(uncompleted.pop_front().unwrap());
                        }
                    }
                    Step::Arrive => if let Some((at, data, told)) = wire.pop_front() {
                        ring[at..at + data.len()].copy_from_slice(&data);
                        inbox.arrived(told).unwrap();
                    },
                    Step::Take(most) => {
                        if let Some(span) = inbox.ready() {
                            let len = span.len.min(most);
                            for byte in &ring[span.at..span.at + len] {
                                prop_assert_eq!(*byte, seen);
                                seen += 1;
                            }
                            inbox.took(len);
                        }
                        if let Some(told) = inbox.due() {
                            credits.push_back(told);
                            inbox.told();
                            prop_assert!(credits.len() <= CREDITS as usize);
                        }
                    }
                    Step::Credit => if let Some(told) = credits.pop_front() {
                        outbox.credited(told).unwrap();
                    },
                }
                prop_assert!(uncompleted.len() <= MESSAGES as usize);
            }
        }
    }

    #[test]
    fn a_full_ring_goes_on_once_it_is_consumed() {
        let (mut outbox, mut inbox) = (Outbox::new(1024, 256), Inbox::new(1024));
        for small in [true, false] {
            let mut sent = 0;
            while let Some(span) = outbox.room() {
                let end = outbox.wrote(if small { 1 } else { span.len });
                outbox.completed(end);
                inbox.arrived(end as u32).unwrap();
                sent += 1;
            }
            assert!(if small { sent == MESSAGES } else { sent >= 4 }, "{sent} messages");
            while let Some(span) = inbox.ready() {
                inbox.took(span.len);
            }
            outbox.credited(inbox.due().unwrap()).unwrap();
            inbox.told();
            assert!(outbox.room().is_some() && outbox.ends.is_empty());
        }
    }

    #[test]
    fn what_breaks_the_rules_is_found() {
        let (mut outbox, mut inbox) = (Outbox::new(1024, 256), Inbox::new(1024));
        assert!(inbox.arrived(0).is_err(), "nothing");
        assert!(inbox.arrived(1025).is_err(), "more than there is room for");
        inbox.arrived(1024).unwrap();
        assert!(inbox.arrived(1025).is_err());
        assert!(outbox.credited(1).is_err(), "what was never sent");
        outbox.wrote(10);
        outbox.credited(10).unwrap();
        assert!(outbox.credited(9).is_err(), "back");
        assert!(!outbox.is_flushed());
        outbox.completed(10);
        assert!(outbox.is_flushed());
    }
}
