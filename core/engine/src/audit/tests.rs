//! Both halves on real memory: what is found, what is not disturbed, what is covered.

use super::*;
use crate::receiver::{Image, ReceiveError};
use crate::sender;
use crate::staging::Staging;
use crate::tests::{Memory, capture, frame_tx, nowhere, plain, receive_only};
use aventine_api::{PageBitmap, PageRun};
use aventine_protocol::{CheckpointEnd, FrameKind, PayloadHash};
use std::sync::mpsc::channel;
use std::thread;

/// What the checkpoint of an epoch says, as payloads.
fn payloads(sealed: &Sealed) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut take = |payload: &[u8]| {
        all.push(payload.to_vec());
        Ok::<(), ()>(())
    };
    sealed.frames(&mut take).unwrap();
    all
}

/// First page and number of pages.
fn range(sealed: &Sealed) -> (u64, u64) {
    let payloads = payloads(sealed);
    let record = AuditRecord::decode(&payloads[0], u64::MAX).unwrap();
    assert_eq!(payloads.len(), 1);
    (record.first_page, record.pages())
}

#[test]
fn every_page_is_compared_within_the_given_epochs_again_and_again() {
    const PAGES: [usize; 2] = [700, 303];
    let mut guest = Memory::new(&PAGES);
    (0..1003).for_each(|page| guest.fill(page, (page % 251) as u8));
    let mut auditor = Auditor::start(guest.view(), 7);
    let mut checker = Checker::new(7, 1003, None);
    let standby = guest.view();
    for epoch in 1..=22u64 {
        let sealed = auditor.seal(Epoch(epoch));
        assert_eq!(sealed.is_some(), epoch > 1, "there is no slice before the first checkpoint");
        if let Some(sealed) = sealed {
            let first = (epoch - 2) % 7 * 144;
            assert_eq!(range(&sealed), (first, 144.min(1003 - first)));
            checker.check(Epoch(epoch), &payloads(&sealed), &standby).unwrap();
        }
        auditor.acknowledged(Epoch(epoch));
        auditor.begin(Epoch(epoch));
        auditor.await_hashed();
    }
    let status = checker.status();
    assert_eq!((status.every, status.pages, status.passes), (7, 3009, 3));
    assert_eq!((status.last_pass_epoch, status.last_pass_epochs, status.mismatches), (22, 7, 0));
    // The standby has not yet answered for the last slice.
    let status = auditor.status();
    assert_eq!((status.pages, status.passes, status.last_pass_epoch), (3009 - 139, 2, 15));
}

#[test]
fn what_is_not_hashed_in_time_comes_in_a_later_epoch() {
    let mut guest = Memory::new(&[20_000]);
    let mut auditor = Auditor::start(guest.view(), 2);
    let (mut next, mut passes) = (0, 0);
    for epoch in 1.. {
        if let Some(sealed) = auditor.seal(Epoch(epoch)) {
            let (first, pages) = range(&sealed);
            assert_eq!(first, next);
            next = (first + pages) % 20_000;
            passes += u32::from(next == 0);
        }
        if passes == 3 {
            break;
        }
        auditor.begin(Epoch(epoch));
    }
}

#[test]
fn a_slice_of_an_earlier_session_is_not_used() {
    let mut guest = Memory::new(&[64]);
    let mut auditor = Auditor::start(guest.view(), 4);
    auditor.seal(Epoch::FIRST);
    for epoch in 1..=2 {
        auditor.begin(Epoch(epoch));
        auditor.await_hashed();
        assert!(auditor.seal(Epoch(epoch + 1)).is_some());
    }
    auditor.begin(Epoch(3));
    auditor.await_hashed();
    assert!(auditor.seal(Epoch::FIRST).is_none());
    auditor.begin(Epoch::FIRST);
    auditor.await_hashed();
    assert_eq!(range(&auditor.seal(Epoch(2)).unwrap()), (0, 16), "all over again");
    // Nor is one of another epoch, which others may have taken dirty bits after.
    auditor.begin(Epoch(2));
    auditor.await_hashed();
    assert!(auditor.seal(Epoch(4)).is_none());
}

/// A primary and a standby over a wire in memory, one pass of the audit for each checkpoint.
struct Pair {
    guest: Memory,
    image: Memory,
    auditor: Auditor,
    checker: Checker,
    epoch: Epoch,
}

const PAGES: [usize; 2] = [300, 200];

impl Pair {
    fn new() -> Pair {
        let mut guest = Memory::new(&PAGES);
        let mut auditor = Auditor::start(guest.view(), 1);
        auditor.seal(Epoch::FIRST);
        auditor.begin(Epoch::FIRST);
        let (image, checker) = (Memory::new(&PAGES), Checker::new(1, 500, None));
        Pair { guest, image, auditor, checker, epoch: Epoch(2) }
    }

    /// An epoch at whose end these pages are seen to be dirty.
    fn epoch(&mut self, dirty: &[u64]) -> Result<(), Divergence> {
        let mut map = PageBitmap::new(500);
        dirty.iter().for_each(|&page| map.set_range(page, 1));
        let ((jobs_tx, jobs), (wire, arrived)) = (channel(), channel());
        let (mut staging, back) = Staging::new(2 << 20, jobs_tx, |_| None);
        let sending = thread::spawn(move || {
            sender::run(&jobs, frame_tx(wire), plain(), &back, &nowhere(), |e| panic!("{e}"));
        });
        staging.audit(self.auditor.seal(self.epoch).unwrap());
        capture(&mut staging, Epoch::FIRST, &map, &self.guest.view());
        staging.finish(Epoch::FIRST, true, Vec::new()).unwrap();
        drop(staging);
        sending.join().unwrap();
        // The guest goes on before the checkpoint arrives: what it holds is not touched by that.
        self.auditor.begin(self.epoch);
        self.auditor.await_hashed();
        self.epoch = self.epoch.next();

        let (whole, _, end) = receive_only(arrived, &PAGES, 500);
        assert!(matches!(end, ReceiveError::Wire(_)), "{end}");
        let mut image = Image { memory: self.image.view(), codec: plain() };
        whole[0].pages.iter().for_each(|p| image.decode(p).unwrap());
        self.checker.check(whole[0].epoch, &whole[0].audit, &image.memory)
    }
}

#[test]
fn a_dirty_page_is_hashed_as_it_was_captured() {
    let mut pair = Pair::new();
    pair.auditor.await_hashed();
    // Written after the hashing, before the seal.
    pair.guest.fill(299, 1);
    pair.guest.fill(300, 2);
    pair.epoch(&[299, 300]).unwrap();
    pair.guest.fill(299, 0);
    pair.epoch(&[299, 0, 499]).unwrap();
    assert_eq!(pair.checker.status().pages, 1000);
}

#[test]
fn a_lost_dirty_bit_is_found_one_pass_later_at_most_and_named() {
    let mut pair = Pair::new();
    pair.auditor.await_hashed();
    for page in [0, 299, 300, 499] {
        pair.guest.fill(page, 9);
    }
    pair.epoch(&[299]).unwrap();
    let found = pair.epoch(&[1]).unwrap_err();
    assert_eq!((found.total, found.pages()), (3, vec![0, 300, 499]));
    let text = found.to_string();
    assert!(
        text.contains("page 0 (byte 0x0 of guest RAM, byte 0x0 of region 0), page 300 (byte 0x12c000"),
        "{text}"
    );
    assert!(text.contains("page 499 (byte 0x1f3000 of guest RAM, byte 0xc7000 of region 1)"), "{text}");
    let status = pair.checker.status();
    assert_eq!((status.mismatches, status.pages, status.last_mismatch), (3, 500, text));
    // The other side's image differs: the same thing to find.
    for page in [0, 300, 499] {
        pair.image.fill(page, 9);
    }
    pair.image.fill(77, 1);
    assert_eq!(pair.epoch(&[]).unwrap_err().pages(), [77]);
}

#[test]
fn a_text_names_no_more_than_a_message_holds() {
    let mut memory = Memory::new(&[1 << 10]);
    let pages = (0..2000).collect::<Vec<_>>();
    let found = Divergence::new(Epoch(u64::MAX), u64::MAX, &pages, &memory.view());
    assert_eq!(found.pages().len(), AUDIT_NAMED);
    let text = found.to_string();
    assert!(text.len() < 4000 && text.contains("more"), "{text}");
    // Pages that do not exist are not named.
    let found = Divergence::new(Epoch(1), 2, &[1 << 10, u64::MAX, 5], &memory.view());
    assert_eq!(found.pages(), [5]);
}

/// What the receiver says about a checkpoint with these frames of the audit.
fn refusal(limit: u64, records: &[(u64, u64)]) -> ReceiveError {
    let (wire, arrived) = channel();
    let mut tx = frame_tx(wire);
    let mut hashes = Vec::new();
    let mut sent = |kind, payload: &[u8]| {
        let header = tx.send(kind, 0, Epoch::FIRST, &[payload]).unwrap();
        hashes.extend(header.payload_hash.to_le_bytes());
        PayloadHash::of(&[&hashes])
    };
    for &(first, pages) in records {
        let mut payload = Vec::new();
        AuditRecord::encode(first, (0..pages).map(|_| 1), &mut payload);
        sent(FrameKind::Audit, &payload);
    }
    let digest = sent(FrameKind::State, &[]);
    let frames = records.len() as u32 + 1;
    let end = CheckpointEnd { armed: false, frames, pages: 0, state_len: 0, digest };
    sent(FrameKind::CheckpointEnd, &end.encode());
    drop(tx);
    let (whole, _, end) = receive_only(arrived, &PAGES, limit);
    assert!(whole.is_empty() || matches!(end, ReceiveError::Wire(_)));
    end
}

#[test]
fn hashes_that_nobody_asked_for_are_refused_before_they_pile_up() {
    assert!(matches!(refusal(100, &[(0, 60), (400, 40)]), ReceiveError::Wire(_)), "taken, and the wire ends");
    assert!(matches!(refusal(0, &[(0, 1)]), ReceiveError::Audit { pages: 1, limit: 0, .. }));
    assert!(matches!(refusal(100, &[(0, 60), (0, 41)]), ReceiveError::Audit { pages: 101, limit: 100, .. }));
    for record in [(499, 2), (500, 1), (u64::MAX, 1), (3, 0)] {
        assert!(matches!(refusal(1000, &[record]), ReceiveError::Message(_)), "{record:?}");
    }
}

#[test]
fn a_checkpoint_without_its_hashes_is_not_whole() {
    let mut pair = Pair::new();
    pair.auditor.await_hashed();
    let sealed = pair.auditor.seal(Epoch(2)).unwrap();
    let ((jobs_tx, jobs), (wire, arrived)) = (channel(), channel());
    let (mut staging, back) = Staging::new(2 << 20, jobs_tx, |_| None);
    let sending = thread::spawn(move || {
        sender::run(&jobs, frame_tx(wire), plain(), &back, &nowhere(), |e| panic!("{e}"));
    });
    staging.audit(sealed);
    staging.finish(Epoch::FIRST, true, Vec::new()).unwrap();
    drop(staging);
    sending.join().unwrap();
    let frames = arrived.iter().collect::<Vec<_>>();
    assert_eq!(frames.len(), 3, "hashes, state and end");
    let left = crate::tests::renumbered(frames[1..].to_vec());
    assert!(matches!(receive_only(left, &PAGES, 500).2, ReceiveError::Incomplete(_)));
}

#[test]
fn pages_of_a_captured_run_count_where_they_are_in_the_slice_only() {
    let mut guest = Memory::new(&[64]);
    let mut auditor = Auditor::start(guest.view(), 4);
    auditor.seal(Epoch::FIRST);
    for epoch in 1..=2 {
        auditor.begin(Epoch(epoch));
        auditor.await_hashed();
        let sealed = auditor.seal(Epoch(epoch + 1)).unwrap();
        let data = [epoch as u8; 64 * PAGE_SIZE];
        sealed.captured(&[PageRun { first_page: 0, data: &data[..18 * PAGE_SIZE] }]);
        let payloads = payloads(&sealed);
        let hashes = AuditRecord::decode(&payloads[0], 64).unwrap().hashes();
        let zero = AuditRecord::hash(&[0; PAGE_SIZE]);
        let changed = hashes.map(|h| h != zero).collect::<Vec<_>>();
        let expected = (0..16).map(|i| epoch == 1 || i < 2).collect::<Vec<_>>();
        assert_eq!(changed, expected);
    }
}
