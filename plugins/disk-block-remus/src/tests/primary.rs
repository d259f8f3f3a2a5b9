use super::*;
use crate::device::Device;
use crate::wire::kind;
use aventine_api::Disengage;
use std::os::unix::fs::FileExt;
use std::thread;

/// Waits until somebody has asked for a lock after the first `before`.
fn await_asked(device: &Device, before: u64) {
    let start = Instant::now();
    while device.ranges.asked() <= before {
        assert!(start.elapsed() < LIMIT, "nobody asks for the range");
        thread::yield_now();
    }
}

#[test]
fn a_change_waits_for_whoever_has_its_range() {
    let pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let device = &pair.primary.disk.device;
    thread::scope(|s| {
        let held = device.ranges.lock(1000, 1000);
        let asked = device.ranges.asked();
        let writers = [
            s.spawn(|| pair.block.write(500, &[7; 501], false).unwrap()),
            s.spawn(|| pair.block.trim(1999, 1).unwrap()),
        ];
        await_asked(device, asked + 1);
        pair.block.write(2000, b"beside it", false).unwrap();
        assert!(writers.iter().all(|w| !w.is_finished()));
        assert_eq!(pair.image(PRIMARY)[..2000], pattern(MIB, 1)[..2000]);
        drop(held);
    });
    assert_eq!(pair.image(PRIMARY)[500..1001], [7; 501]);
}

#[test]
fn the_copy_reads_a_range_only_when_nobody_changes_it() {
    for (hole, written) in [(false, MIB), (true, MIB), (true, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join(PRIMARY)).unwrap();
        file.set_len(4 * MIB as u64).unwrap();
        if !hole {
            file.write_all_at(&pattern(4 * MIB, 1), 0).unwrap();
        }
        let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, 64 * MIB).unwrap();
        let mut standby = Half::open(dir.path(), Side::Standby, STANDBY, 64 * MIB).unwrap();
        let wire = Arc::new(Wire::default());
        wire.change(|s| s.capacity = 4);
        let device = Arc::clone(&primary.disk.device);
        let held = device.ranges.lock(0, 4 * MIB as u64);
        primary.disk.replicate(Box::new(End(wire.clone())), None).unwrap();
        standby.disk.receive(Box::new(End(wire.clone())), Box::new(Back(wire.clone()))).unwrap();
        await_asked(&device, 1);
        // As a write would that had the range before the copy asked for it.
        file.write_all_at(&pattern(5000, 2), written as u64).unwrap();
        drop(held);
        let block = primary.disk.block();
        let mut pair = Pair { primary, standby, wire, block, dir };
        pair.finish_copy();
        pair.epoch(1);
        pair.assert_same();
    }
}

#[test]
fn no_epoch_is_sealed_before_the_copy_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(PRIMARY), pattern(8 * MIB, 1)).unwrap();
    let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, 4 * MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 1);
    primary.disk.replicate(Box::new(End(wire.clone())), None).unwrap();
    wire.wait(|s| s.records.len() == 1);
    let error = primary.disk.seal(Epoch(1)).unwrap_err();
    assert!(error.chain().contains("initial copy"), "{}", error.chain());
    assert!(primary.disk.progress().done < 8 * MIB as u64);
    wire.cut();
}

#[test]
fn sealing_never_waits_for_the_channel() {
    let mut pair = Pair::armed(&pattern(8 * MIB, 1), 64 * MIB);
    // The channel is stuck and the queue is full: a write waits.
    pair.wire.change(|s| s.held = true);
    let block = Arc::clone(&pair.block);
    let (done, written) = channel();
    let writer = thread::spawn(move || {
        for i in 0..10 {
            block.write(0, &pattern(4 * MIB, i), false).unwrap();
        }
        done.send(()).unwrap();
    });
    pair.wire.wait(|s| s.records.len() == s.capacity);
    assert_eq!(pair.primary.event(), Event::EpochWanted);
    // The pause is near: the write must end, or the hypervisor would wait for the network.
    pair.primary.disk.pausing();
    written.recv_timeout(LIMIT).unwrap();
    writer.join().unwrap();
    assert_eq!(pair.primary.disk.stats().written_bytes, 40 * MIB as u64);
    pair.primary.disk.seal(Epoch(2)).unwrap();
    pair.primary.disk.seal(Epoch(2)).unwrap();
    pair.wire.change(|s| s.held = false);
    pair.await_staged(2);
    pair.commit(2);
    pair.standby.disk.apply(Epoch(2)).unwrap();
    pair.assert_same();
}

/// Alone it waits for more. The quickest of many rounds tells: a busy machine makes some slow, but none quick.
#[test]
fn a_small_write_goes_at_once_with_its_barrier() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(PRIMARY), pattern(MIB, 1)).unwrap();
    let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, 64 * MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = usize::MAX);
    primary.disk.replicate(Box::new(End(wire.clone())), None).unwrap();
    wire.wait(|s| s.records.back().is_some_and(|(head, _)| head.kind == kind::COPIED));
    wire.change(|s| s.records.clear());
    let block = primary.disk.block();
    let mut epochs = 1..;
    let mut quickest = |records: usize| {
        let round = |_| {
            let start = Instant::now();
            block.write(0, b"data", false).unwrap();
            if records == 2 {
                primary.disk.seal(Epoch(epochs.next().unwrap())).unwrap();
            }
            wire.wait(|s| s.records.len() == records);
            wire.change(|s| s.records.clear());
            start.elapsed()
        };
        (0..40).map(round).min().unwrap()
    };
    let (alone, with_barrier) = (quickest(1), quickest(2));
    assert!(with_barrier < alone / 2, "{with_barrier:?}, and {alone:?} without a barrier");
}

#[test]
fn a_full_queue_holds_the_guest_back_until_there_is_room() {
    let mut pair = Pair::armed(&pattern(8 * MIB, 1), 16 * MIB);
    pair.wire.change(|s| {
        s.held = true;
        s.capacity = 0;
    });
    // With one write beyond a quarter of the buffer the queue is full.
    pair.block.write(0, &pattern(5 * MIB, 2), false).unwrap();
    assert_eq!(pair.primary.event(), Event::EpochWanted);
    let (done, written) = channel();
    let block = Arc::clone(&pair.block);
    let writer = thread::spawn(move || {
        block.write(MIB as u64, &pattern(MIB, 3), false).unwrap();
        done.send(()).unwrap();
    });
    let waits = written.recv_timeout(Duration::from_millis(50));
    assert!(waits.is_err(), "the write found room where there is none");
    pair.wire.change(|s| {
        s.held = false;
        s.capacity = 4;
    });
    written.recv_timeout(LIMIT).unwrap();
    writer.join().unwrap();
    pair.epoch(2);
    pair.assert_same();
    pair.primary.assert_silent();
}

#[test]
fn a_flush_in_the_pause_is_made_good_before_the_epoch_can_commit() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let image = Arc::clone(&pair.primary.disk.device.medium().unwrap().image);
    pair.block.write(0, b"data", false).unwrap();
    assert!(!image.is_synced());
    pair.block.flush().unwrap();
    assert!(image.is_synced(), "outside of a pause a flush is carried out");

    for fua in [false, true] {
        pair.wire.change(|s| {
            s.held = true;
            s.capacity = 0;
        });
        pair.primary.disk.pausing();
        pair.block.write_zeroes(0, 100, false, fua).unwrap();
        if !fua {
            pair.block.flush().unwrap();
        }
        assert!(!image.is_synced(), "inside it is not");
        let epoch = if fua { 3 } else { 2 };
        pair.primary.disk.seal(Epoch(epoch)).unwrap();
        pair.wire.change(|s| {
            s.held = false;
            s.capacity = 4;
        });
        pair.await_staged(epoch);
        assert!(image.is_synced(), "the barrier is behind it");
        pair.block.write(0, b"more", false).unwrap();
        pair.block.flush().unwrap();
        assert!(image.is_synced(), "the pause is over");
    }
}

#[test]
fn a_flush_in_a_pause_that_never_seals_is_made_good_all_the_same() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let image = Arc::clone(&pair.primary.disk.device.medium().unwrap().image);
    pair.primary.disk.pausing();
    pair.block.write(0, b"data", false).unwrap();
    pair.block.flush().unwrap();
    pair.primary.disk.disengage(Disengage::Owner).unwrap();
    let start = Instant::now();
    while !image.is_synced() {
        assert!(start.elapsed() < LIMIT);
        thread::yield_now();
    }
}

#[test]
fn with_durable_memory_a_flush_waits_for_nothing_while_epochs_commit() {
    let mut pair = Pair::copying(&pattern(MIB, 1), 64 * MIB);
    pair.wire.cut();
    let Pair { primary, standby, block, dir, .. } = pair;
    drop((primary, standby, block));
    let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, 64 * MIB).unwrap();
    primary.disk.durable = Durable::Memory;
    // So that no point is due, which would be on stable storage.
    primary.disk.interval = LIMIT;
    let standby = Half::open(dir.path(), Side::Standby, STANDBY, 64 * MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 4);
    let block = primary.disk.block();
    pair = Pair { primary, standby, wire, block, dir };
    let (tx, rx) = (Box::new(End(pair.wire.clone())), Box::new(End(pair.wire.clone())));
    pair.primary.disk.replicate(tx, None).unwrap();
    pair.standby.disk.receive(rx, Box::new(Back(pair.wire.clone()))).unwrap();
    pair.finish_copy();
    let image = Arc::clone(&pair.primary.disk.device.medium().unwrap().image);
    pair.block.write(0, b"data", false).unwrap();
    pair.block.flush().unwrap();
    assert!(image.is_synced(), "the guest is not protected yet");
    pair.epoch(1);
    pair.block.write(0, b"more", true).unwrap();
    pair.block.flush().unwrap();
    pair.epoch(2);
    assert!(!image.is_synced());
    pair.primary.disk.disengage(Disengage::Owner).unwrap();
    let start = Instant::now();
    while !image.is_synced() {
        assert!(start.elapsed() < LIMIT, "what is owed is made good once the guest is alone");
        thread::yield_now();
    }
    pair.block.write(0, b"alone", true).unwrap();
    assert!(image.is_synced());
}

#[test]
fn fua_reaches_stable_storage() {
    let pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let image = &pair.primary.disk.device.medium().unwrap().image;
    pair.block.flush().unwrap();
    pair.block.write(7, &pattern(5000, 2), true).unwrap();
    assert!(image.is_synced());
    pair.block.write_zeroes(7, 50, true, true).unwrap();
    assert!(image.is_synced());
}

#[test]
fn requests_past_the_end_are_errors() {
    let pair = Pair::armed(&[1; 4096], MIB);
    assert!(pair.block.read(4095, &mut [0; 2]).is_err());
    assert!(pair.block.write(u64::MAX, b"ab", false).is_err());
    assert!(pair.block.trim(1, 4096).is_err());
    pair.block.write(4096, b"", false).unwrap();
    assert_eq!(pair.block.size(), 4096);
    assert_eq!(pair.image(PRIMARY).len(), 4096);
}
