use super::*;
use proptest::prelude::*;

const LEN: usize = 1024;
/// Buffers, and the length of each.
const BUFFERS: u32 = OFFERS + 4;
const BYTES: usize = 300;

/// What both sides do, in any order that the wire allows.
#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Fill(usize),
    Complete,
    Arrive,
    Take(usize),
    /// Takes a buffer whole, if that is what comes next.
    Borrow,
    GiveBack,
    Credit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..400usize).prop_map(Step::Write),
        2 => (1..=BYTES).prop_map(Step::Fill),
        2 => Just(Step::Complete),
        4 => Just(Step::Arrive),
        3 => (1..500usize).prop_map(Step::Take),
        1 => Just(Step::Borrow),
        1 => Just(Step::GiveBack),
        1 => Just(Step::Credit),
    ];
    proptest::collection::vec(step, 1..600)
}

/// Both accounts, after `begin` bytes.
fn accounts(begin: u64) -> (Outbox, Inbox) {
    let (mut outbox, mut inbox) = (Outbox::new(LEN, 256, BUFFERS), Inbox::new(LEN, BUFFERS, BYTES));
    (outbox.written, outbox.completed, outbox.consumed) = (begin, begin, begin);
    (inbox.received, inbox.consumed, inbox.told) = (begin, begin, begin);
    (outbox, inbox)
}

proptest! {
    /// Against plain memory: every byte arrives, in order, nothing is overwritten before it was consumed or while the caller
    /// has it, and neither queue overflows.
    #[test]
    fn a_ring_loses_nothing_and_overwrites_nothing(steps in steps(), begin in any::<u32>()) {
        // As after many bytes: the immediates wrap.
        let (mut outbox, mut inbox) = accounts(u64::from(begin) / LEN as u64 * LEN as u64);
        let mut memory = vec![0u64; LEN + BUFFERS as usize * BYTES];
        let place = |buffer: u32| LEN + buffer as usize * BYTES;
        let (mut sent, mut seen) = (0u64, 0u64);
        let (mut uncompleted, mut wire, mut tells) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let mut free: Vec<u32> = (OFFERS..BUFFERS).collect();
        let mut borrowed = VecDeque::new();
        for step in steps {
            match step {
                Step::Write(len) => if let Some(span) = outbox.room() {
                    let len = len.min(span.len);
                    let data: Vec<u64> = (sent..sent + len as u64).collect();
                    sent += len as u64;
                    let end = outbox.wrote(len);
                    uncompleted.push_back(end);
                    wire.push_back((span.at, data, immediate(end)));
                },
                Step::Fill(len) => if let (Some(_), Some(buffer)) = (outbox.room(), outbox.offer()) {
                    let data: Vec<u64> = (sent..sent + len as u64).collect();
                    sent += len as u64;
                    let (end, told) = outbox.filled(len);
                    uncompleted.push_back(end);
                    wire.push_back((place(buffer), data, told));
                },
                Step::Complete => {
                    // Only what has arrived.
                    if uncompleted.len() > wire.len() {
                        outbox.completed(uncompleted.pop_front().unwrap());
                    }
                }
                Step::Arrive => if let Some((at, data, told)) = wire.pop_front() {
                    memory[at..at + data.len()].copy_from_slice(&data);
                    inbox.arrived(told).unwrap();
                },
                Step::Take(most) => {
                    let (at, span) = match inbox.ready() {
                        Some(Ready::Ring(span)) => (span.at, span),
                        Some(Ready::Lent(buffer, span)) => (place(buffer) + span.at, span),
                        None => continue,
                    };
                    let len = span.len.min(most);
                    for byte in &memory[at..at + len] {
                        prop_assert_eq!(*byte, seen);
                        seen += 1;
                    }
                    free.extend(inbox.took(len));
                }
                Step::Borrow => if let Some(Ready::Lent(next, span)) = inbox.ready() {
                    prop_assert_eq!(inbox.take(span.len + 1), None);
                    if let Some(buffer) = inbox.take(span.len) {
                        prop_assert_eq!((buffer, span.at), (next, 0));
                        borrowed.push_back((buffer, seen, span.len));
                        seen += span.len as u64;
                    }
                },
                Step::GiveBack => if let Some((buffer, from, len)) = borrowed.pop_front() {
                    let bytes = &memory[place(buffer)..place(buffer) + len];
                    prop_assert!((from..).zip(bytes).all(|(due, byte)| *byte == due));
                    free.push(buffer);
                },
                Step::Credit => if let Some(told) = tells.pop_front() {
                    outbox.heard(told).unwrap();
                },
            }
            if let Some(told) = inbox.due() {
                tells.push_back(told);
                inbox.told();
            }
            while inbox.wants_offer() && let Some(buffer) = free.pop() {
                tells.push_back(inbox.offer(buffer));
            }
            prop_assert!(tells.len() <= (CREDITS + OFFERS) as usize);
            prop_assert!(uncompleted.len() <= MESSAGES as usize);
        }
    }

    /// Whatever the other side tells, it is refused or leads nowhere outside.
    #[test]
    fn nothing_that_is_told_leads_outside(told in proptest::collection::vec(
        prop_oneof![any::<u32>(), 0..2000u32, (0..400u32).prop_map(|n| n | LENT)], 1..300), begin in any::<u32>()) {
        let (mut outbox, mut inbox) = accounts(begin.into());
        for told in told {
            let _ = inbox.arrived(told);
            prop_assert!(inbox.received - inbox.told <= LEN as u64);
            prop_assert!(inbox.messages.len() <= MESSAGES as usize);
            match inbox.ready() {
                Some(Ready::Ring(span)) => prop_assert!(span.len > 0 && span.at + span.len <= LEN),
                Some(Ready::Lent(buffer, span)) => {
                    prop_assert!(buffer < BUFFERS && span.len > 0 && span.at + span.len <= BYTES);
                }
                None => {}
            }
            if told % 3 == 0 && let Some(Ready::Ring(span) | Ready::Lent(_, span)) = inbox.ready() {
                inbox.took(span.len);
            }
            outbox.wrote(1);
            let _ = outbox.heard(told);
            prop_assert!(outbox.consumed <= outbox.written);
            prop_assert!(outbox.offered.len() <= OFFERS as usize && outbox.offered.iter().all(|b| *b < BUFFERS));
        }
    }
}

#[test]
fn a_full_ring_goes_on_once_it_is_consumed() {
    let (mut outbox, mut inbox) = accounts(0);
    for small in [true, false] {
        let mut sent = 0;
        while let Some(span) = outbox.room() {
            let end = outbox.wrote(if small { 1 } else { span.len });
            outbox.completed(end);
            inbox.arrived(immediate(end)).unwrap();
            sent += 1;
        }
        assert!(if small { sent == MESSAGES } else { sent >= 4 }, "{sent} messages");
        while let Some(Ready::Ring(span)) = inbox.ready() {
            inbox.took(span.len);
        }
        outbox.heard(inbox.due().unwrap()).unwrap();
        inbox.told();
        assert!(outbox.room().is_some() && outbox.ends.is_empty());
    }
}

#[test]
fn what_breaks_the_rules_is_found() {
    let (mut outbox, mut inbox) = accounts(0);
    assert!(inbox.arrived(0).is_err(), "nothing");
    assert!(inbox.arrived(1025).is_err(), "more than there is room for");
    inbox.arrived(1024).unwrap();
    assert!(inbox.arrived(1025).is_err());
    assert!(inbox.arrived(LENT | 1).is_err(), "no room for another message");
    assert!(outbox.heard(1).is_err(), "what was never sent");
    outbox.wrote(10);
    outbox.heard(10).unwrap();
    assert!(outbox.heard(9).is_err(), "back");
    assert!(!outbox.is_flushed());
    outbox.completed(10);
    assert!(outbox.is_flushed());
}

#[test]
fn what_breaks_the_rules_of_buffers_is_found() {
    let (mut outbox, mut inbox) = accounts(0);
    assert!(inbox.arrived(LENT).is_err(), "nothing");
    assert!(inbox.arrived(LENT | 301).is_err(), "more than a buffer");
    assert!(inbox.arrived(u32::MAX).is_err());
    for _ in 0..OFFERS {
        inbox.arrived(LENT | 300).unwrap();
    }
    assert!(inbox.arrived(LENT | 300).is_err(), "none is offered");
    inbox.arrived(100).unwrap();
    assert_eq!(inbox.take(299), None);
    assert_eq!(inbox.take(300), Some(0));
    assert_eq!((inbox.took(1), inbox.take(299)), (None, None), "begun");
    assert_eq!(inbox.took(299), Some(1));

    assert!(outbox.heard(LENT).is_err(), "it is offered already");
    outbox.filled(300);
    assert_eq!(outbox.offer(), Some(1));
    assert!(outbox.heard(LENT | BUFFERS).is_err(), "there is none of this number");
    outbox.heard(LENT | (BUFFERS - 1)).unwrap();
    assert!(outbox.heard(LENT).is_err(), "too many");
    let nobody = Outbox::new(LEN, 256, 0).heard(LENT);
    assert!(nobody.is_err() && Inbox::new(LEN, 0, 0).arrived(LENT | 1).is_err(), "there are none");
}
