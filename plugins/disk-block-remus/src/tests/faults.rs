use super::*;
use crate::device::{Access, Device, Medium};
use crate::wire::{Tally, kind};
use aventine_disk_common::image::Image;
use std::thread;

#[test]
fn a_lost_channel_is_reported_and_holds_nobody_back() {
    let mut pair = Pair::armed(&pattern(8 * MIB, 1), 16 * MIB);
    pair.wire.change(|s| s.held = true);
    let block = Arc::clone(&pair.block);
    // Far more than fits: the writer waits for the channel when it is cut.
    let writer = thread::spawn(move || {
        for i in 0..60 {
            block.write(0, &pattern(MIB, i), false).unwrap();
        }
    });
    assert_eq!(pair.primary.event(), Event::EpochWanted);
    pair.wire.cut();
    writer.join().unwrap();
    let cut = Event::Failed(ErrorCode::PeerLost, "The test cut the channel".to_owned());
    assert_eq!(pair.primary.event(), cut);
    assert_eq!(pair.standby.event(), cut);

    let error = pair.primary.disk.seal(Epoch(2)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PeerLost);
    pair.block.write(0, b"alone", true).unwrap();
    pair.block.flush().unwrap();
    assert_eq!(pair.primary.read_all()[..5], *b"alone");
    assert_eq!(pair.standby.disk.commit(Epoch(2)).unwrap_err().code(), ErrorCode::Refused);
    pair.primary.assert_silent();
    pair.standby.disk.activate(Epoch(1)).unwrap();
    assert!(pair.image(STANDBY) == pattern(8 * MIB, 1));
}

#[test]
fn damage_is_found_before_the_epoch_counts_as_held() {
    type Damage = fn(&mut RecordHead, &mut Vec<u8>);
    let damages: [Damage; 2] = [
        |head, bytes| {
            if head.kind == kind::BARRIER {
                bytes[0] += 1;
            }
        },
        |head, bytes| {
            if head.kind == kind::CHANGES {
                bytes.truncate(25);
            }
        },
    ];
    for damage in damages {
        let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
        pair.wire.change(|s| s.damage = Some(damage));
        pair.block.write(77, &pattern(5000, 2), false).unwrap();
        pair.seal(2);
        let event = pair.standby.event();
        assert!(matches!(event, Event::Failed(ErrorCode::Corrupt, _)), "{event:?}");
        assert!(pair.standby.disk.commit(Epoch(2)).is_err());
        pair.standby.disk.activate(Epoch(1)).unwrap();
        assert!(pair.image(STANDBY) == pattern(MIB, 1));
    }
}

/// The number after the last possible one must not be asked for.
#[test]
fn an_epoch_that_is_not_the_next_one_is_refused() {
    for epoch in [0, 1, 3, u64::MAX] {
        let pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
        let barrier =
            |epoch| (RecordHead { epoch: Epoch(epoch), kind: kind::BARRIER }, Tally::default().finish());
        pair.wire.change(|s| {
            for (head, sum) in [barrier(epoch), barrier(2)] {
                s.records.push_back((head, sum.encode().to_vec()));
            }
        });
        let event = pair.standby.event();
        assert!(matches!(event, Event::Failed(ErrorCode::Corrupt, _)), "{epoch}: {event:?}");
    }
}

/// A standby that cannot commit, because memory is missing, does not collect them without end.
#[test]
fn epochs_without_a_write_take_room() {
    let pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let before = pair.standby.disk.stats().buffered_bytes;
    for epoch in 2..=101 {
        let (head, sum) =
            (RecordHead { epoch: Epoch(epoch), kind: kind::BARRIER }, Tally::default().finish());
        pair.wire.change(|s| s.records.push_back((head, sum.encode().to_vec())));
        assert_eq!(pair.standby.event(), Event::Staged(epoch));
    }
    assert!(pair.standby.disk.stats().buffered_bytes >= before + 100 * 16);
}

#[test]
fn a_primary_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut standby = Half::open(dir.path(), Side::Standby, STANDBY, MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| {
        let head = RecordHead { epoch: Epoch::COPY, kind: kind::DESCRIBE };
        s.records.push_back((head, [&[9, 0][..], &[0; 8]].concat()));
    });
    let error = standby.disk.receive(Box::new(End(wire.clone())), Box::new(Back(wire.clone()))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt);
    assert!(error.chain().contains("version 9"), "{}", error.chain());
    assert!(!dir.path().join(STANDBY).exists());
}

#[test]
fn a_local_write_error_reaches_the_guest_and_ends_replication() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PRIMARY);
    fs::write(&path, pattern(MIB, 1)).unwrap();
    let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, MIB).unwrap();
    let history = Arc::clone(&primary.disk.device.medium().unwrap().history);
    let medium = Medium { image: Arc::new(Image::broken(&path)), history };
    primary.disk.device = Arc::new(Device::new(Access::ReadWrite, Some(medium)));
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 64);
    primary.disk.replicate(Box::new(End(wire.clone())), None).unwrap();
    let block = primary.disk.block();
    assert_eq!(block.write(0, b"x", false).unwrap_err().code(), ErrorCode::Io);
    let Event::Failed(ErrorCode::Io, text) = primary.event() else { panic!("not reported") };
    assert!(text.contains("may differ") && text.contains("Writing 1 bytes at 0"), "{text}");
    assert!(primary.disk.seal(Epoch(1)).is_err());
    wire.cut();
}
