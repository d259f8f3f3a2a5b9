//! What both files of a disk were told, in order.

use aventine_disk_common::steps::{self, Step};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A step of the image or of its metadata, noted when it is done.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Of the image.
    Image(Step),
    /// Other metadata, which were on stable storage, have the name; and that is on stable storage.
    Replace(Vec<u8>),
    Replaced,
    /// A mark in the metadata; and all of them are on stable storage.
    Mark(usize, [u8; 8]),
    Marked,
    /// Something was told to the other side.
    Sent,
}

static LOGS: Mutex<Option<HashMap<PathBuf, Vec<Op>>>> = Mutex::new(None);

/// Notes a step in the log of the file's directory, if that has one.
pub(crate) fn note(path: &Path, op: impl FnOnce() -> Op) {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(log) = path.parent().and_then(|dir| logs.as_mut()?.get_mut(dir)) {
        log.push(op());
    }
}

pub(crate) fn begin(dir: &Path) {
    steps::watch(|path, step| note(path, || Op::Image(step())));
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    logs.get_or_insert_default().insert(dir.to_owned(), Vec::new());
}

pub(crate) fn end(dir: &Path) -> Vec<Op> {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    logs.as_mut().and_then(|logs| logs.remove(dir)).unwrap_or_default()
}

mod replay {
    use super::*;
    use crate::meta::Place;
    use crate::tests::*;
    use tempfile::TempDir;

    const SIZE: usize = 12 * MIB;

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
        }
    }

    /// What a host's two files may hold after a power loss at the end of `ops`. `keeps` decides about each write that was
    /// not on stable storage.
    fn lose_power(
        ops: &[Op],
        mut image: Vec<u8>,
        mut meta: Option<Vec<u8>>,
        keeps: &mut dyn FnMut() -> bool,
    ) -> (Vec<u8>, Option<Vec<u8>>) {
        // What each completed sync covers is everything before it began.
        let (mut begun, mut synced, mut named, mut marked) = (0, 0, 0, 0);
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Image(Step::Sync) => begun = at,
                Op::Image(Step::Synced) => synced = begun,
                Op::Replaced => named = at,
                Op::Marked => marked = at,
                _ => {}
            }
        }
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Image(Step::Write { offset, data, synced: fua }) if at < synced || *fua || keeps() => {
                    image[*offset as usize..][..data.len()].copy_from_slice(data);
                }
                Op::Replace(text) if at < named || keeps() => meta = Some(text.clone()),
                // A mark belongs to the file that had the name; one that kept it has its marks, too.
                Op::Mark(offset, bits) if at < marked || keeps() => {
                    let later = ops[..at].iter().rposition(|op| matches!(op, Op::Replace(_)));
                    let same = later.is_none_or(|r| match (&ops[r], &meta) {
                        (Op::Replace(text), Some(meta)) => text[..120] == meta[..120],
                        _ => false,
                    });
                    if let Some(meta) = meta.as_mut().filter(|_| same) {
                        for (to, from) in meta[*offset..*offset + 8].iter_mut().zip(bits) {
                            *to |= from;
                        }
                    }
                }
                _ => {}
            }
        }
        (image, meta)
    }

    /// A session of a primary in `a` and a standby in `b`, with what `a` is told in the log.
    struct Hosts {
        a: TempDir,
        b: TempDir,
    }

    fn dir() -> TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn open(dir: &TempDir, side: Side) -> Half {
        Half::open(dir.path(), side, "disk.img", 64 * MIB).unwrap()
    }

    fn read(dir: &TempDir) -> (Vec<u8>, Option<Vec<u8>>) {
        (fs::read(dir.path().join("disk.img")).unwrap(), fs::read(metadata(dir)).ok())
    }

    fn metadata(dir: &TempDir) -> PathBuf {
        Place::of(&dir.path().join("disk.img"), dir.path()).path().to_owned()
    }

    fn put(dir: &TempDir, (image, meta): (Vec<u8>, Option<Vec<u8>>)) {
        // In place: a host that comes back has the same file.
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(dir.path().join("disk.img"));
        std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), &image, 0).unwrap();
        match meta {
            Some(meta) => fs::write(metadata(dir), meta).unwrap(),
            None => drop(fs::remove_file(metadata(dir))),
        }
    }

    /// `primary` runs the guest; the other host comes back as its standby. Afterwards the images are the same.
    fn resync(primary: &TempDir, standby: &TempDir, what: &str) {
        let (mut ours, mut theirs) = (open(primary, Side::Primary), open(standby, Side::Standby));
        let wire = Arc::new(Wire::default());
        wire.change(|s| s.capacity = 4);
        connect(&mut ours, &mut theirs, &wire);
        let point = theirs.disk.device.medium().unwrap().history.points().0;
        assert!(point.is_some(), "a full copy: {what}");
        let block = ours.disk.block();
        let mut pair = Pair { primary: ours, standby: theirs, wire, block, dir: dir() };
        pair.finish_copy();
        pair.epoch(1);
        pair.wire.cut();
        drop(pair);
        assert!(read(primary).0 == read(standby).0, "the images differ: {what}");
    }

    impl Hosts {
        fn run(seed: u64, standby_fails: bool) {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let Hosts { a, b } = Hosts { a: dir(), b: dir() };
            fs::write(a.path().join("disk.img"), pattern(SIZE, 1)).unwrap();
            let (mut primary, mut standby) = (open(&a, Side::Primary), open(&b, Side::Standby));
            let wire = Arc::new(Wire::default());
            wire.change(|s| s.capacity = 64);
            connect(&mut primary, &mut standby, &wire);
            let block = primary.disk.block();
            let mut pair = Pair { primary, standby, wire, block, dir: dir() };
            pair.finish_copy();
            pair.epoch(1);
            pair.await_quiet();
            let failing = if standby_fails { &b } else { &a };
            let (image, meta) = read(failing);
            begin(failing.path());
            let mut committed = pair.next_epoch();
            for _ in 0..random.below(24) {
                match random.below(8) {
                    0..4 => {
                        let (at, len) = (random.below(SIZE - 70_000), 1 + random.below(70_000));
                        pair.block.write(at as u64, &pattern(len, random.below(256) as u8), false).unwrap();
                    }
                    4 => pair.block.flush().unwrap(),
                    5 => pair.await_quiet(),
                    _ => committed = pair.next_epoch(),
                }
            }
            committed = committed.max(Epoch(pair.standby.disk.staging.as_ref().unwrap().staged().0));
            if !standby_fails {
                // Nothing that is told from here on changes what the standby takes over.
                note(&a.path().join("x"), || Op::Sent);
                for _ in 0..random.below(4) {
                    let at = random.below(SIZE - 9000) as u64;
                    pair.block.write(at, &pattern(9000, random.below(256) as u8), false).unwrap();
                }
            }
            let ops = end(failing.path());
            pair.wire.cut();
            let Pair { primary, mut standby, block, .. } = pair;
            if standby_fails {
                drop(standby);
                block.write(5 * MIB as u64, b"while it is away", false).unwrap();
                drop((primary, block));
            } else {
                standby.disk.activate(committed).unwrap();
                standby.disk.block().write(7 * MIB as u64, b"after the takeover", false).unwrap();
                drop((primary, block, standby));
            }
            let other = if standby_fails { &a } else { &b };
            let kept = read(other);
            let changed = fs::metadata(other.path().join("disk.img")).unwrap().modified().unwrap();
            let sent = ops.iter().rposition(|op| matches!(op, Op::Sent)).unwrap_or(ops.len());
            for until in sent..=ops.len() {
                for pass in 0..4_u64 {
                    let mut flips = Random(seed * 1000 + until as u64 * 10 + pass + 1);
                    let mut keeps = || match pass {
                        0 => false,
                        1 => true,
                        _ => flips.below(2) == 0,
                    };
                    put(failing, lose_power(&ops[..until], image.clone(), meta.clone(), &mut keeps));
                    put(other, kept.clone());
                    // It was closed in order, and is as it was.
                    let image = fs::OpenOptions::new().write(true).open(other.path().join("disk.img"));
                    image.unwrap().set_modified(changed).unwrap();
                    resync(
                        other,
                        failing,
                        &format!("seed {seed}, {until} of {} steps, pass {pass}", ops.len()),
                    );
                }
            }
        }
    }

    #[test]
    fn a_primary_that_loses_power_comes_back_as_it_should_be() {
        (1..=12).for_each(|seed| Hosts::run(seed, false));
    }

    #[test]
    fn a_standby_that_loses_power_comes_back_as_it_should_be() {
        (1..=12).for_each(|seed| Hosts::run(seed, true));
    }
}
