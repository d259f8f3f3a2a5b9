//! What is copied after a loss, and that the images are the same then.

use super::*;
use aventine_api::Disengage;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 64 << 10;
const B: usize = BLOCK as usize;

impl Pair {
    /// The channel is lost and the standby's process ends in order.
    fn lose_standby(self) -> (Half, TempDir) {
        let Pair { mut primary, standby, wire, dir, .. } = self;
        wire.cut();
        primary.disk.disengage(Disengage::Owner).unwrap();
        drop(standby);
        (primary, dir)
    }

    /// A new session of the two, up to its first epoch.
    fn join(mut primary: Half, mut standby: Half, dir: TempDir) -> Pair {
        let wire = Arc::new(Wire::default());
        wire.change(|s| s.capacity = 4);
        let block = primary.disk.block();
        connect(&mut primary, &mut standby, &wire);
        let mut pair = Pair { primary, standby, wire, block, dir };
        pair.finish_copy();
        pair.epoch(1);
        pair
    }

    /// Bytes that this session has sent.
    fn moved(&self) -> usize {
        self.primary.disk.stats().replicated_bytes as usize
    }
}

fn open(dir: &TempDir, side: Side, image: &str) -> Half {
    Half::open(dir.path(), side, image, 64 * MIB).unwrap()
}

#[test]
fn a_standby_that_was_away_gets_what_has_changed() {
    let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
    pair.await_point();
    pair.block.write(0, &pattern(3 * B, 2), false).unwrap();
    pair.epoch(2);
    pair.await_point();
    let (primary, dir) = pair.lose_standby();
    let block = primary.disk.block();
    block.write(7 * BLOCK, &pattern(5 * B, 3), false).unwrap();
    block.trim(100 * BLOCK, 2 * BLOCK).unwrap();
    block.write(MIB as u64 * 16 - 5, &[9; 5], true).unwrap();
    let standby = open(&dir, Side::Standby, STANDBY);
    let mut pair = Pair::join(primary, standby, dir);
    // The blocks before the loss may count as well: their point had just begun.
    let changed = 6 * B;
    assert!((changed..=(changed + 3 * B) * 11 / 10).contains(&pair.moved()), "{}", pair.moved());
    pair.assert_same();
    pair.block.write(40 * BLOCK, &pattern(100, 4), false).unwrap();
    pair.epoch(2);
    pair.assert_same();
}

#[test]
fn a_standby_that_missed_nothing_gets_nothing() {
    let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
    pair.block.write(0, &pattern(3 * B, 2), false).unwrap();
    pair.epoch(2);
    pair.await_quiet();
    for _ in 0..2 {
        let (primary, dir) = pair.lose_standby();
        let standby = open(&dir, Side::Standby, STANDBY);
        pair = Pair::join(primary, standby, dir);
        assert_eq!(pair.moved(), 0);
        pair.assert_same();
        pair.await_quiet();
    }
}

/// Both processes end and come back, once in order and once without a word.
#[test]
fn changes_are_known_after_a_restart() {
    for crashes in [false, true] {
        let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
        pair.await_quiet();
        let (primary, dir) = pair.lose_standby();
        primary.disk.block().write(50 * BLOCK + 5, &pattern(B, 3), false).unwrap();
        let kept = crashes.then(|| fs::read(dir.path().join("primary.img.aventine")).unwrap());
        drop(primary);
        if let Some(kept) = kept {
            fs::write(dir.path().join("primary.img.aventine"), kept).unwrap();
        }
        let (primary, standby) = (open(&dir, Side::Primary, PRIMARY), open(&dir, Side::Standby, STANDBY));
        pair = Pair::join(primary, standby, dir);
        pair.assert_same();
        let limit = if crashes { 4 * MIB + 2 * B } else { B + 5000 };
        assert!((B + 4096..limit).contains(&pair.moved()), "{}", pair.moved());
    }
}

#[test]
fn an_old_primary_loses_what_was_not_committed() {
    for crashes in [false, true] {
        let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
        pair.await_quiet();
        pair.block.write(3 * BLOCK, &pattern(B, 2), false).unwrap();
        let last = pair.next_epoch();
        pair.block.write(200 * BLOCK, b"never committed", false).unwrap();
        pair.seal(last.0 + 1);
        pair.block.write(201 * BLOCK, b"never sealed", true).unwrap();
        let Pair { mut primary, mut standby, wire, block, dir } = pair;
        wire.cut();
        standby.disk.activate(last).unwrap();
        let kept = fs::read(dir.path().join("primary.img.aventine")).unwrap();
        if !crashes {
            primary.disk.disengage(Disengage::NotOwner).unwrap();
        }
        drop((primary, block));
        if crashes {
            fs::write(dir.path().join("primary.img.aventine"), kept).unwrap();
        }
        standby.disk.block().write(9 * BLOCK, b"the new primary's", false).unwrap();
        let back = open(&dir, Side::Standby, PRIMARY);
        let mut pair = Pair::join(standby, back, dir);
        pair.assert_same();
        let image = pair.image(PRIMARY);
        assert_eq!(image[200 * B..][..15], pattern(16 * MIB, 1)[200 * B..][..15]);
        assert_eq!(image[3 * B..4 * B], pattern(B, 2));
        assert_eq!(image[9 * B..][..17], *b"the new primary's");
        let limit = if crashes { 2 * 4 * MIB + 2 * B } else { 6 * B };
        assert!(pair.moved() < limit, "{}", pair.moved());

        // And back again: the roles are changed once more.
        pair.await_quiet();
        let last = pair.next_epoch();
        pair.block.write(77 * BLOCK, b"lost again", false).unwrap();
        let Pair { primary: old, standby: mut new, wire, block, dir } = pair;
        wire.cut();
        new.disk.activate(last).unwrap();
        drop((old, block));
        let back = open(&dir, Side::Standby, STANDBY);
        let pair = Pair::join(new, back, dir);
        pair.assert_same();
        assert_eq!(pair.image(PRIMARY)[77 * B..][..10], image[77 * B..][..10]);
        assert!(pair.moved() < 4 * B, "{}", pair.moved());
    }
}

#[test]
fn what_something_else_changed_is_copied_in_full() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        (STANDBY, |path| {
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .write_all_at(b"other", 8 * MIB as u64)
                .unwrap();
        }),
        (STANDBY, |path| {
            let contents = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            // So that the new file is another one even where inodes are used again.
            File::create(path.with_extension("between")).unwrap();
            fs::write(path, contents).unwrap();
        }),
        (STANDBY, |path| {
            let note = path.with_extension("img.aventine");
            let mut bytes = fs::read(&note).unwrap();
            bytes[60] ^= 1;
            fs::write(note, bytes).unwrap();
        }),
    ];
    for (image, change) in changes {
        let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
        pair.await_quiet();
        let (primary, dir) = pair.lose_standby();
        change(&dir.path().join(image));
        let standby = open(&dir, Side::Standby, STANDBY);
        pair = Pair::join(primary, standby, dir);
        pair.assert_same();
        assert!(pair.moved() >= 16 * MIB, "{}", pair.moved());
    }
}

#[test]
fn a_standby_from_a_backup_is_copied_in_full() {
    let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
    pair.await_quiet();
    let files = ["standby.img", "standby.img.aventine"];
    let backup = files.map(|f| fs::read(pair.dir.path().join(f)).unwrap());
    for seed in 2..4 {
        pair.block.write(0, &pattern(B, seed), false).unwrap();
        pair.next_epoch();
        pair.await_quiet();
    }
    let (primary, dir) = pair.lose_standby();
    for (file, bytes) in files.iter().zip(backup) {
        // In place: the file is the same.
        OpenOptions::new().write(true).open(dir.path().join(file)).unwrap().write_all_at(&bytes, 0).unwrap();
    }
    let standby = open(&dir, Side::Standby, STANDBY);
    let pair = Pair::join(primary, standby, dir);
    pair.assert_same();
    assert!(pair.moved() >= 16 * MIB, "{}", pair.moved());
}

/// A resync that is lost in the middle is begun anew, and the image in between is none to start from.
#[test]
fn a_resync_that_is_cut_is_begun_anew() {
    let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
    pair.await_quiet();
    let (mut primary, dir) = pair.lose_standby();
    primary.disk.block().write(0, &pattern(8 * MIB, 3), false).unwrap();
    let mut standby = open(&dir, Side::Standby, STANDBY);
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 2);
    connect(&mut primary, &mut standby, &wire);
    primary.disk.block().write(12 * MIB as u64, b"while it is resynced", false).unwrap();
    wire.change(|s| s.held = true);
    wire.cut();
    primary.disk.disengage(Disengage::Owner).unwrap();
    assert!(standby.disk.activate(Epoch(1)).is_err());
    drop(standby);
    let error = Half::open(dir.path(), Side::Primary, STANDBY, MIB).err().unwrap();
    assert!(error.chain().contains("holds part of a copy"), "{}", error.chain());
    let standby = open(&dir, Side::Standby, STANDBY);
    pair = Pair::join(primary, standby, dir);
    pair.assert_same();
    assert!((8 * MIB..9 * MIB).contains(&pair.moved()), "{}", pair.moved());
}

#[test]
fn a_guest_that_writes_in_the_same_places_waits_for_no_mark() {
    let mut pair = Pair::armed(&pattern(16 * MIB, 1), 64 * MIB);
    pair.await_point();
    let mut marks = |at: usize| {
        power::begin(pair.dir.path());
        pair.block.write(at as u64, b"written", false).unwrap();
        let marks = power::end(pair.dir.path()).iter().filter(|op| matches!(op, power::Op::Mark(..))).count();
        let point = |pair: &Pair| pair.primary.disk.device.medium().unwrap().history.points().0;
        let before = point(&pair);
        while point(&pair) == before {
            pair.next_epoch();
        }
        pair.await_point();
        marks
    };
    assert_eq!([0, MIB, 0].map(&mut marks), [1, 0, 0], "a region is marked once");
    assert_eq!([9 * MIB, 9 * MIB].map(&mut marks), [1, 0]);
    assert_eq!(marks(0), 1, "one that was left alone from one point to the next is not");
}

#[test]
fn answers_that_make_no_sense_end_replication() {
    use crate::wire::kind;
    for (kind, payload) in [(9, vec![]), (kind::REACHED, vec![1; 16]), (kind::BLOCKS, vec![0xff; 16])] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PRIMARY), pattern(MIB, 1)).unwrap();
        let mut primary = open(&dir, Side::Primary, PRIMARY);
        let wire = Arc::new(Wire::default());
        wire.change(|s| {
            s.capacity = 4;
            s.back.push_back((RecordHead { epoch: Epoch::COPY, kind }, payload));
        });
        primary.disk.replicate(Box::new(End(wire.clone())), Some(Box::new(Back(wire.clone())))).unwrap();
        let event = primary.event();
        assert!(matches!(event, Event::Failed(ErrorCode::Corrupt, _)), "{event:?}");
        wire.cut();
    }
}
