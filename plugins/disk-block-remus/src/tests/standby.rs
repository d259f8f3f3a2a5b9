use super::*;
use aventine_disk_common::image::Image;

#[test]
fn nothing_of_an_epoch_is_in_the_image_before_it_is_committed_and_all_of_it_once_applied() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let before = pair.image(STANDBY);
    pair.block.write(100, &pattern(200_000, 2), false).unwrap();
    pair.seal(2);
    pair.await_staged(2);
    pair.standby.disk.apply(Epoch(2)).unwrap();
    assert!(pair.image(STANDBY) == before, "it is not committed");
    assert!(pair.standby.disk.stats().buffered_bytes >= 200_000);
    pair.commit(2);
    assert!(pair.image(STANDBY) == before, "a commit does no I/O");
    pair.standby.disk.apply(Epoch(2)).unwrap();
    pair.assert_same();
    pair.standby.disk.apply(Epoch(2)).unwrap();
    pair.standby.disk.commit(Epoch(2)).unwrap();
    pair.assert_same();
}

#[test]
fn an_epoch_that_is_not_here_cannot_be_committed() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    let error = pair.standby.disk.commit(Epoch(2)).unwrap_err();
    assert!(error.chain().contains("complete up to epoch 1"), "{}", error.chain());
    pair.block.write(0, b"open", false).unwrap();
    pair.seal(2);
    pair.await_staged(2);
    let error = pair.standby.disk.activate(Epoch(2)).unwrap_err();
    assert!(error.chain().contains("1 is the last one committed"), "{}", error.chain());
    pair.standby.disk.activate(Epoch(1)).unwrap();
    assert!(pair.image(STANDBY) == pattern(MIB, 1));
}

#[test]
fn taking_over_finishes_what_is_committed_and_drops_the_rest() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    pair.block.write(0, &pattern(5000, 2), false).unwrap();
    pair.seal(2);
    let at_two = pair.image(PRIMARY);
    pair.block.write(2500, &pattern(5000, 3), false).unwrap();
    pair.seal(3);
    pair.block.write(0, &pattern(9000, 4), false).unwrap();
    pair.await_staged(2);
    pair.await_staged(3);
    pair.commit(2);

    let standby = pair.standby.disk.block();
    assert_eq!(standby.write(0, b"x", false).unwrap_err().code(), ErrorCode::Refused);
    assert_eq!(standby.trim(0, 1).unwrap_err().code(), ErrorCode::Refused);
    standby.flush().unwrap();
    standby.read(0, &mut [0; 16]).unwrap();
    pair.standby.disk.activate(Epoch(2)).unwrap();
    assert!(pair.standby.read_all() == at_two);
    pair.standby.disk.activate(Epoch(2)).unwrap();
    assert_eq!(pair.standby.disk.stats().buffered_bytes, 0);
    standby.write(0, b"mine", true).unwrap();
    standby.write_zeroes(4, 4, true, false).unwrap();
    standby.flush().unwrap();
    assert_eq!(pair.image(STANDBY)[..8], *b"mine\0\0\0\0");
}

#[test]
fn a_half_applied_image_is_not_taken_over_until_the_epoch_is_applied() {
    let mut pair = Pair::armed(&pattern(MIB, 1), 64 * MIB);
    pair.block.write(0, &pattern(5000, 2), false).unwrap();
    pair.seal(2);
    pair.await_staged(2);
    pair.commit(2);
    let broken = Image::broken(&pair.dir.path().join(STANDBY));
    let staging = Arc::clone(pair.standby.disk.staging.as_ref().unwrap());
    let error = PluginError::from(staging.apply(Epoch(2), &broken).unwrap_err());
    assert!(error.chain().contains("Epoch 2 could not be applied"), "{}", error.chain());
    let error = pair.standby.disk.activate(Epoch(2)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains("between epochs 1 and 2"), "{}", error.chain());
    assert!(pair.standby.disk.block().write(0, b"x", false).is_err());
    pair.standby.disk.apply(Epoch(2)).unwrap();
    pair.standby.disk.activate(Epoch(2)).unwrap();
    pair.assert_same();
}

#[test]
fn the_reader_stops_while_an_epoch_waits_and_goes_on_once_it_is_applied() {
    let mut pair = Pair::armed(&pattern(8 * MIB, 1), 16 * MIB);
    pair.wire.change(|s| s.capacity = 64);
    pair.block.write(0, &pattern(8 * MIB, 8), false).unwrap();
    pair.block.write(MIB as u64, &pattern(MIB, 9), false).unwrap();
    pair.seal(2);
    pair.await_staged(2);
    // 9 MiB are held: the next epoch stays in the channel.
    pair.block.write(0, &pattern(5 * MIB, 9), false).unwrap();
    pair.seal(3);
    pair.wire.wait(|s| s.records.len() >= 3);
    pair.standby.assert_silent();
    let held = pair.standby.disk.stats().buffered_bytes as usize;
    assert!((9 * MIB..10 * MIB).contains(&held), "{held}");
    pair.commit(2);
    pair.standby.disk.apply(Epoch(2)).unwrap();
    pair.await_staged(3);
    pair.commit(3);
    pair.standby.disk.apply(Epoch(3)).unwrap();
    pair.assert_same();
}

#[test]
fn an_epoch_that_does_not_fit_is_a_failure_that_names_the_key() {
    let pair = Pair::armed(&pattern(MIB, 1), 2 * MIB);
    for i in 0..4 {
        pair.block.write(0, &pattern(MIB, i), false).unwrap();
    }
    let Event::Failed(code, text) = pair.standby.event() else { panic!("it fits") };
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("2097152 bytes") && text.contains("Raise `buffer`"), "{text}");
}
