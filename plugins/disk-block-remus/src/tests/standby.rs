use super::*;
use aventine_disk_common::image::Image;

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
