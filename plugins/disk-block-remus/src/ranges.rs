//! Locks on ranges of bytes, granted in the order in which they were asked for.

use aventine_disk_common::{lock, wait_while};
use std::ops::Range;
use std::sync::{Condvar, Mutex};

/// The ranges that somebody holds or waits for.
#[derive(Default)]
pub(crate) struct Ranges {
    asked: Mutex<Asked>,
    freed: Condvar,
}

#[derive(Default)]
struct Asked {
    next: u64,
    /// Ascending tickets.
    ranges: Vec<(u64, Range<u64>)>,
    /// How many wait for one before theirs.
    waiting: usize,
}

/// A range that nobody else holds, until this is dropped.
pub(crate) struct Held<'a> {
    ranges: &'a Ranges,
    ticket: u64,
}

impl Ranges {
    /// Waits until no range asked for earlier overlaps this one.
    pub(crate) fn lock(&self, offset: u64, len: u64) -> Held<'_> {
        let range = offset..offset + len;
        let mut asked = lock(&self.asked);
        let ticket = asked.next;
        asked.next += 1;
        asked.ranges.push((ticket, range.clone()));
        let held = Held { ranges: self, ticket };
        let earlier = |asked: &mut Asked| {
            asked
                .ranges
                .iter()
                .take_while(|(t, _)| *t < ticket)
                .any(|(_, r)| r.start < range.end && range.start < r.end)
        };
        if earlier(&mut asked) {
            asked.waiting += 1;
            wait_while(&self.freed, asked, earlier).waiting -= 1;
        }
        held
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut asked = lock(&self.ranges.asked);
        asked.ranges.retain(|(t, _)| *t != self.ticket);
        let waiting = asked.waiting > 0;
        drop(asked);
        if waiting {
            self.ranges.freed.notify_all();
        }
    }
}

#[cfg(test)]
impl Ranges {
    /// How many locks have been asked for.
    pub(crate) fn asked(&self) -> u64 {
        lock(&self.asked).next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn overlapping_ranges_wait_in_order_and_others_do_not() {
        let ranges = Ranges::default();
        let (tx, rx) = channel();
        thread::scope(|s| {
            let first = ranges.lock(0, 10);
            let beside = ranges.lock(10, 10);
            for (n, ticket) in [(1, 2), (2, 3)] {
                let (tx, ranges) = (tx.clone(), &ranges);
                s.spawn(move || {
                    let _held = ranges.lock(5, 10);
                    tx.send(n).unwrap();
                });
                while ranges.asked() <= ticket {
                    thread::yield_now();
                }
            }
            drop(ranges.lock(30, 1));
            drop(first);
            assert!(rx.try_recv().is_err(), "the range beside it is held still");
            drop(beside);
        });
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [1, 2]);
    }
}
