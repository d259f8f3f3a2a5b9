//! Both images are compared while the guest is protected.

use super::*;
use aventine_api::{Disengage, DiskVerification};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const SIZE: usize = 16 * MIB + 5000;

impl Pair {
    /// Changes the standby's image behind everybody's back.
    fn harm(&self, places: &[usize]) {
        let image = OpenOptions::new().write(true).open(self.dir.path().join(STANDBY)).unwrap();
        places.iter().for_each(|at| image.write_all_at(b"harmed", *at as u64).unwrap());
    }

    /// Verifies, while epochs go on and the guest writes; answers what was found.
    fn verify(&mut self, repair: bool) -> DiskVerification {
        self.primary.disk.verify(repair).unwrap();
        let error = self.primary.disk.verify(repair).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Refused);
        let (start, mut round) = (Instant::now(), 0_u8);
        while self.primary.disk.verification().running {
            assert!(start.elapsed() < LIMIT, "{:?}", self.primary.disk.verification());
            let at = 300_000 * u64::from(round % 40);
            self.block.write(at, &pattern(70_000, round), false).unwrap();
            self.next_epoch();
            round = round.wrapping_add(1);
        }
        self.next_epoch();
        self.primary.disk.verification()
    }
}

#[test]
fn images_that_are_the_same_are_found_to_be() {
    let mut pair = Pair::armed(&pattern(SIZE, 1), 64 * MIB);
    assert_eq!(pair.primary.disk.verification(), DiskVerification::default());
    let total = SIZE as u64;
    let same = DiskVerification { total, done: total, ..DiskVerification::default() };
    for repair in [true, false] {
        assert_eq!(pair.verify(repair), same);
        pair.assert_same();
    }
}

#[test]
fn what_differs_is_counted_and_repaired() {
    let mut pair = Pair::armed(&pattern(SIZE, 1), 64 * MIB);
    // Where the guest does not write; the last one in a shorter piece at the end.
    pair.harm(&[13 * MIB, 13 * MIB + 200, 15 * MIB, SIZE - 6]);
    let differing = 2 * (64 << 10) + 5000;
    let total = SIZE as u64;
    let found = DiskVerification { total, done: total, differing, ..DiskVerification::default() };
    assert_eq!(pair.verify(false), found);
    assert_ne!(pair.image(PRIMARY), pair.image(STANDBY), "it was to be left as it is");
    assert_eq!(pair.verify(true), DiskVerification { repaired: differing, ..found });
    pair.assert_same();
    assert_eq!(pair.verify(true), DiskVerification { differing: 0, ..found });
}

#[test]
fn the_end_of_the_session_ends_it_and_a_resync_brings_what_was_to_be_repaired() {
    let mut pair = Pair::armed(&pattern(SIZE, 1), 64 * MIB);
    pair.await_point();
    pair.harm(&[9 * MIB]);
    pair.primary.disk.verify(true).unwrap();
    let start = Instant::now();
    while pair.primary.disk.verification().differing == 0 {
        assert!(start.elapsed() < LIMIT);
        pair.next_epoch();
    }
    pair.wire.cut();
    pair.primary.disk.disengage(Disengage::Owner).unwrap();
    while pair.primary.disk.verification().running {
        assert!(start.elapsed() < LIMIT);
        std::thread::yield_now();
    }
    let error = pair.primary.disk.verify(true).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused, "{}", error.chain());
    let Pair { primary, standby, dir, .. } = pair;
    drop(standby);
    let standby = Half::open(dir.path(), Side::Standby, STANDBY, 64 * MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 4);
    let (mut primary, mut standby) = (primary, standby);
    let block = primary.disk.block();
    connect(&mut primary, &mut standby, &wire);
    let mut pair = Pair { primary, standby, wire, block, dir };
    pair.finish_copy();
    pair.epoch(1);
    assert!(pair.primary.disk.stats().replicated_bytes < MIB as u64, "a resync, no copy");
    pair.assert_same();
}

#[test]
fn nobody_is_compared_with_before_the_first_epoch() {
    let mut pair = Pair::copying(&pattern(MIB, 1), 64 * MIB);
    assert_eq!(pair.primary.disk.verify(true).unwrap_err().code(), ErrorCode::Refused);
    assert_eq!(pair.standby.disk.verify(true).unwrap_err().code(), ErrorCode::Refused);
    pair.finish_copy();
}
