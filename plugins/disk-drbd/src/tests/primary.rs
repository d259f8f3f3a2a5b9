//! The side of the guest.

use super::*;
use aventine_api::Disengage;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;

#[test]
fn what_is_not_committed_is_read_and_reaches_no_device() {
    let before = pattern(MIB, 1);
    let mut pair = Pair::armed(&before);
    pair.block.write(1000, b"open", false).unwrap();
    pair.seal(2);
    pair.block.write(1002, b"later", true).unwrap();
    pair.block.flush().unwrap();
    pair.await_staged(2);
    let mut due = before.clone();
    due[1000..1007].copy_from_slice(b"oplater");
    assert!(pair.primary.read_all() == due);
    assert!(pair.twin.file(0) == before && pair.twin.file(1) == before);

    pair.commit(2);
    due[1002..1007].copy_from_slice(&before[1002..1007]);
    due[1002..1004].copy_from_slice(b"en");
    await_that(|| pair.twin.file(1) == due);
    assert!(pair.twin.file(0) == due, "epoch 2 and no more");
    assert!(pair.primary.read_all()[1000..1007] == *b"oplater");
}

#[test]
fn a_flush_is_on_the_device_when_its_epoch_is_released() {
    let mut pair = Pair::armed(&pattern(MIB, 1));
    for (epoch, fua) in [(2, false), (3, true)] {
        let data = pattern(300_000, epoch as u8);
        pair.block.write(5, &data, fua).unwrap();
        if !fua {
            pair.block.flush().unwrap();
        }
        pair.epoch(epoch);
        assert!(pair.twin.file(0)[5..300_005] == data, "epoch {epoch}");
        assert!(pair.primary.disk.device.image().unwrap().is_synced());
    }
}

#[test]
fn what_was_written_before_the_first_epoch_is_on_both_sides_when_that_is_staged() {
    let mut pair = Pair::joined(&pattern(MIB, 1), BUFFER);
    pair.await_ready();
    pair.block.write(77, b"early", false).unwrap();
    pair.twin.connect(Connection::Connecting);
    pair.seal(1);
    pair.block.write(77, b"later", false).unwrap();
    let early = pair.standby.events.recv_timeout(Duration::from_millis(300));
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "DRBD does not have it on both sides");
    pair.twin.connect(Connection::Connected);
    pair.await_staged(1);
    assert_eq!(pair.twin.file(1)[77..82], *b"early");
    assert!(pair.primary.disk.seal(Epoch(1)).is_ok(), "idempotent");
}

#[test]
fn an_epoch_waits_for_a_resync() {
    let dir = tempfile::tempdir().unwrap();
    let twin = Twin::new(dir.path(), &pattern(MIB, 1));
    twin.change(|inner| {
        inner.connection = Connection::Resyncing;
        inner.contents[1] = Contents::Inconsistent;
    });
    let mut primary = Half::open(dir.path(), &twin, Side::Primary, BUFFER).unwrap();
    let (tx, _rx) = sync_channel(4);
    primary.disk.replicate(Box::new(Tx(tx)), None).unwrap();
    primary.disk.block().write(0, b"meanwhile", true).unwrap();
    await_that(|| primary.disk.progress().done > 0);
    assert!(primary.disk.progress().done < MIB as u64);
    let error = primary.disk.seal(Epoch(1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused, "{}", error.chain());
    twin.change(|inner| {
        inner.connection = Connection::Connected;
        inner.contents[1] = Contents::UpToDate;
    });
    await_that(|| primary.disk.progress().done == MIB as u64);
    primary.disk.seal(Epoch(1)).unwrap();
}

#[test]
fn protocol_c_is_spoken_while_the_disk_is_replicated() {
    let dir = tempfile::tempdir().unwrap();
    let twin = Twin::new(dir.path(), &pattern(MIB, 1));
    twin.change(|inner| inner.protocol = 'A');
    let mut primary = Half::open(dir.path(), &twin, Side::Primary, BUFFER).unwrap();
    let (tx, _rx) = sync_channel(4);
    primary.disk.replicate(Box::new(Tx(tx)), None).unwrap();
    await_that(|| primary.disk.progress().done == MIB as u64);
    assert_eq!(twin.inner.lock().unwrap().protocol, 'C');
    primary.disk.disengage(Disengage::Owner).unwrap();
    await_that(|| twin.inner.lock().unwrap().protocol == 'A');
}

#[test]
fn a_link_of_drbds_that_is_cut_costs_memory_and_then_protection() {
    let mut pair = Pair::joined(&pattern(MIB, 1), 16 * MIB);
    pair.await_ready();
    pair.epoch(1);
    pair.twin.connect(Connection::Connecting);
    let block = pair.block.clone();
    let (done, written) = channel();
    // More than may be kept.
    let guest = thread::spawn(move || {
        for i in 0..8 {
            block.write(0, &pattern(MIB, i), false).unwrap();
            done.send(i).unwrap();
        }
    });
    assert_eq!([0, 1].map(|_| written.recv_timeout(LIMIT).unwrap()), [0, 1]);
    assert_eq!(pair.primary.event(), Event::EpochWanted);
    let mut epoch = 1;
    let failure = loop {
        match pair.primary.events.recv_timeout(Duration::from_millis(20)) {
            Ok(Event::EpochWanted) | Err(RecvTimeoutError::Timeout) => {
                epoch += 1;
                if pair.primary.disk.seal(Epoch(epoch)).is_ok() {
                    pair.await_staged(epoch);
                    pair.commit(epoch);
                }
            }
            Ok(event) => break event,
            Err(error) => panic!("{error}"),
        }
    };
    let Event::Failed(ErrorCode::Limit, said) = failure else { panic!("{failure:?}") };
    assert!(said.contains("r0") && said.contains("Connecting") && said.contains("buffer"), "{said}");
    assert!(pair.standby.disk.stats().buffered_bytes >= 4 * MIB as u64, "the standby keeps it all");
    // The guest is not held by what cannot be, and goes on alone.
    pair.primary.disk.disengage(Disengage::Owner).unwrap();
    guest.join().unwrap();
    pair.block.flush().unwrap();
    assert!(pair.twin.file(0) == pattern(MIB, 7));
}

#[test]
fn nothing_waits_in_the_pause() {
    let mut pair = Pair::joined(&pattern(MIB, 1), 16 * MIB);
    pair.await_ready();
    pair.epoch(1);
    pair.primary.disk.pausing();
    for i in 0..8 {
        pair.block.write(0, &pattern(MIB, i), true).unwrap();
        pair.block.flush().unwrap();
    }
    pair.primary.disk.seal(Epoch(2)).unwrap();
    pair.await_staged(2);
    pair.commit(2);
    assert!(pair.twin.file(0) == pattern(MIB, 7));
}

#[test]
fn the_owner_goes_on_with_everything_and_the_loser_with_nothing() {
    let before = pattern(MIB, 1);
    for why in [Disengage::Owner, Disengage::NotOwner] {
        let mut pair = Pair::armed(&before);
        pair.block.write(10, b"sealed", false).unwrap();
        pair.seal(2);
        pair.block.write(20, b"open", true).unwrap();
        pair.primary.disk.disengage(why).unwrap();
        pair.primary.disk.disengage(why).unwrap();
        let read = pair.block.read(10, &mut [0; 4]);
        if why == Disengage::Owner {
            let mut due = before.clone();
            due[10..16].copy_from_slice(b"sealed");
            due[20..24].copy_from_slice(b"open");
            assert!(pair.twin.file(0) == due, "a flush is waited for");
            read.unwrap();
        } else {
            read.unwrap_err();
            pair.block.write(0, b"x", false).unwrap_err();
            await_that(|| pair.asked().last().is_some_and(|last| last == "0 secondary"));
            assert!(pair.twin.file(0) == before);
        }
    }
}

#[test]
fn a_lost_channel_holds_nobody_and_a_new_session_begins() {
    let before = pattern(MIB, 1);
    let mut pair = Pair::armed(&before);
    let Pair { standby, twin, dir, .. } = pair;
    drop(standby);
    // The channel is found lost when something is sent after the other end has left.
    let start = Instant::now();
    let event = loop {
        pair.block.write(0, b"unknown", true).unwrap();
        match pair.primary.events.recv_timeout(Duration::from_millis(5)) {
            Err(_) => assert!(start.elapsed() < LIMIT, "nothing is reported"),
            Ok(event) => break event,
        }
    };
    let Event::Failed(ErrorCode::PeerLost, _) = event else { panic!("{event:?}") };
    pair.block.write(100, b"owner", false).unwrap();
    assert!(twin.file(0) == before, "who owns the guest is not known yet");
    pair.primary.disk.disengage(Disengage::Owner).unwrap();
    assert_eq!(twin.file(0)[..7], *b"unknown");
    let standby = Half::open(dir.path(), &twin, Side::Standby, BUFFER).unwrap();
    pair = Pair { standby, twin, dir, ..pair };
    pair.join();
    pair.await_ready();
    pair.epoch(1);
    pair.block.write(200, b"again", false).unwrap();
    pair.epoch(2);
    pair.await_both();
    assert_eq!(pair.twin.file(1)[200..205], *b"again");
    assert_eq!(pair.twin.file(1)[100..105], *b"owner");
}

#[test]
fn a_disk_that_is_dropped_gives_up_its_role_and_what_is_not_committed() {
    let before = pattern(MIB, 1);
    let pair = Pair::armed(&before);
    pair.block.write(10, b"open", true).unwrap();
    let Pair { primary, block, twin, .. } = pair;
    drop((primary, block));
    assert!(twin.file(0) == before);
    assert_eq!(twin.inner.lock().unwrap().roles[0], Role::Secondary);
}
