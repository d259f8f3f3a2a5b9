//! The side that waits, and its takeover.

use super::*;
use crate::wire::{Change, describe, kind};

#[test]
fn a_takeover_replays_what_drbd_lacks_and_no_more() {
    let before = pattern(MIB, 1);
    let mut pair = Pair::armed(&before);
    pair.twin.connect(Connection::Connecting);
    pair.block.write(10, b"two and", false).unwrap();
    pair.epoch(2);
    pair.block.write(14, b"three", false).unwrap();
    pair.epoch(3);
    pair.block.write(0, b"staged, not committed", false).unwrap();
    pair.seal(4);
    pair.await_staged(4);
    assert!(pair.twin.file(1) == before, "DRBD is cut");
    assert!(pair.standby.disk.activate(Epoch(4)).is_err(), "it is not committed");
    pair.standby.disk.activate(Epoch(3)).unwrap();
    let mut due = before;
    due[10..19].copy_from_slice(b"two three");
    assert!(pair.standby.read_all() == due);
    assert_eq!(pair.standby.disk.stats().buffered_bytes, 0);
    pair.standby.disk.activate(Epoch(3)).unwrap();
    pair.standby.disk.block().write(0, b"mine", true).unwrap();
    assert_eq!(pair.twin.file(1)[..4], *b"mine");
    assert_eq!(pair.standby.events.try_iter().count(), 0);
}

#[test]
fn a_primary_that_does_not_give_up_is_disconnected_and_found_again() {
    let mut pair = Pair::armed(&pattern(MIB, 1));
    pair.block.write(10, b"two", false).unwrap();
    pair.epoch(2);
    pair.standby.disk.activate(Epoch(2)).unwrap();
    let asked = pair.asked();
    assert!(asked.ends_with(&["1 disconnect".to_owned(), "1 primary".to_owned()]), "{asked:?}");
    // It looks for the other side again once that is the standby.
    let Pair { mut standby, twin, .. } = pair;
    let (tx, _rx) = sync_channel(4);
    standby.disk.replicate(Box::new(Tx(tx)), None).unwrap();
    assert_eq!(twin.inner.lock().unwrap().connection, Connection::Connected);
}

#[test]
fn a_primary_that_drbd_has_not_missed_yet_and_a_resync_do_not_keep_a_standby_from_it() {
    for resyncing in [false, true] {
        let mut pair = Pair::armed(&pattern(MIB, 1));
        pair.twin.connect(if resyncing { Connection::Resyncing } else { Connection::Connecting });
        pair.twin.change(|inner| {
            inner.unnoticed = true;
            if resyncing {
                inner.contents[1] = Contents::Inconsistent;
            }
        });
        pair.block.write(10, b"two", false).unwrap();
        pair.epoch(2);
        pair.standby.disk.activate(Epoch(2)).unwrap();
        let due = if resyncing { "1 primary --force" } else { "1 primary" };
        assert_eq!(pair.asked().iter().rfind(|a| a.contains("primary")).unwrap(), due);
        assert_eq!(pair.standby.read_all()[10..13], *b"two");
    }
}

#[test]
fn a_replay_that_failed_can_be_tried_again_and_leaves_a_note() {
    let mut pair = Pair::armed(&pattern(MIB, 1));
    pair.twin.connect(Connection::Connecting);
    pair.block.write(10, b"two", false).unwrap();
    pair.epoch(2);
    let path = &pair.twin.files[1];
    let kept = fs::read(path).unwrap();
    // Too short for the check of what is read back, and no place for the note.
    let note = crate::Marker::of(path, pair.dir.path()).path().with_extension("aventine.new");
    fs::create_dir(&note).unwrap();
    let error = pair.standby.disk.activate(Epoch(2)).unwrap_err();
    assert!(error.chain().contains("Note"), "{}", error.chain());
    assert!(fs::read(path).unwrap() == kept);
    assert_eq!(pair.twin.inner.lock().unwrap().roles[1], Role::Secondary);
    fs::remove_dir(&note).unwrap();
    pair.standby.disk.activate(Epoch(2)).unwrap();
    assert_eq!(pair.standby.read_all()[10..13], *b"two");
    let note = crate::Marker::of(path, pair.dir.path());
    await_that(|| note.read().unwrap().is_none());
}

/// What a standby says to these records after a good description.
fn follow(records: Vec<Record>) -> (Half, Event) {
    let dir = tempfile::tempdir().unwrap();
    let twin = Twin::new(dir.path(), &[0; 4096]);
    let mut half = Half::open(dir.path(), &twin, Side::Standby, BUFFER).unwrap();
    let (tx, rx) = sync_channel(records.len() + 1);
    tx.send((RecordHead { epoch: Epoch::COPY, kind: kind::DESCRIBE }, describe(4096, "r0"))).unwrap();
    records.into_iter().for_each(|record| tx.send(record).unwrap());
    half.disk.receive(Box::new(Rx(rx)), Box::new(Tx(sync_channel(4).0))).unwrap();
    drop(tx);
    let event = half.event();
    (half, event)
}

#[test]
fn foreign_records_are_corrupt() {
    let head = |epoch, kind| RecordHead { epoch: Epoch(epoch), kind };
    let change: Vec<u8> = Change::write(0, b"x").flat_map(|c| [&c.head[..], &c.data].concat()).collect();
    for record in [
        (head(0, kind::CHANGES), change.clone()),
        (head(2, kind::CHANGES), change.clone()),
        (head(1, kind::CHANGES), change[..5].to_vec()),
        (head(1, kind::BARRIER), vec![9; 24]),
        (head(1, kind::BOTH), 1_u64.to_le_bytes().to_vec()),
        (head(1, kind::DESCRIBE), describe(4096, "r0")),
        (head(1, 99), Vec::new()),
    ] {
        let (half, event) = follow(vec![record.clone()]);
        assert!(matches!(event, Event::Failed(ErrorCode::Corrupt, _)), "{record:?}: {event:?}");
        drop(half);
    }
}

#[test]
fn a_standby_is_neither_read_nor_written() {
    let pair = Pair::armed(&pattern(MIB, 1));
    let block = pair.standby.disk.block();
    assert_eq!(block.size(), MIB as u64);
    assert_eq!(block.read(0, &mut [0; 4]).unwrap_err().code(), ErrorCode::Unavailable);
    assert_eq!(block.write(0, b"x", false).unwrap_err().code(), ErrorCode::Refused);
    assert_eq!(block.trim(0, 1).unwrap_err().code(), ErrorCode::Refused);
    block.flush().unwrap();
}
