//! Random runs against a model: two plain vectors of bytes and a snapshot of each epoch.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

const SIZE: usize = 2 * MIB + 1001;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: usize,
        len: usize,
        seed: u8,
        fua: bool,
    },
    Zero {
        at: usize,
        len: usize,
        unmap: bool,
        fua: bool,
    },
    Trim {
        at: usize,
        len: usize,
    },
    Flush,
    Pausing,
    Seal,
    /// Commits the oldest epoch that is not, waiting until it is staged.
    Commit,
    Apply,
}

/// Offset and length inside the disk: mostly small and near each other, sometimes long.
fn range() -> impl Strategy<Value = (usize, usize)> {
    let near = (0..20_000_usize, 1..12_000_usize);
    let far = (0..SIZE, 1..SIZE).prop_map(|(at, len)| (at, len.min(SIZE - at)));
    prop_oneof![6 => near, 1 => far]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (range(), any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|((at, len), seed, fua)| Step::Write { at, len, seed, fua }),
        2 => (range(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|((at, len), unmap, fua)| Step::Zero { at, len, unmap, fua }),
        1 => range().prop_map(|(at, len)| Step::Trim { at, len }),
        1 => Just(Step::Flush),
        1 => Just(Step::Pausing),
        3 => Just(Step::Seal),
        3 => Just(Step::Commit),
        2 => Just(Step::Apply),
    ]
}

/// A primary's image with data in some places and holes in others.
fn sparse(dir: &Path, extents: &[(usize, usize)]) -> Vec<u8> {
    let file = fs::File::create(dir.join(PRIMARY)).unwrap();
    file.set_len(SIZE as u64).unwrap();
    let mut model = vec![0; SIZE];
    for &(at, len) in extents {
        let data = pattern(len, at as u8);
        file.write_all_at(&data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    model
}

struct Run {
    pair: Pair,
    /// The primary's disk.
    model: Vec<u8>,
    /// The disk at the end of each epoch.
    snapshots: BTreeMap<u64, Vec<u8>>,
    sealed: u64,
    committed: u64,
    applied: u64,
}

impl Run {
    fn step(&mut self, step: &Step) {
        let block = &self.pair.block;
        match *step {
            Step::Write { at, len, seed, fua } => {
                let data = pattern(len, seed);
                block.write(at as u64, &data, fua).unwrap();
                self.model[at..at + len].copy_from_slice(&data);
            }
            Step::Zero { at, len, unmap, fua } => {
                block.write_zeroes(at as u64, len as u64, unmap, fua).unwrap();
                self.model[at..at + len].fill(0);
            }
            Step::Trim { at, len } => {
                block.trim(at as u64, len as u64).unwrap();
                self.model[at..at + len].fill(0);
            }
            Step::Flush => block.flush().unwrap(),
            Step::Pausing => self.pair.primary.disk.pausing(),
            Step::Seal => self.seal(),
            Step::Commit if self.committed < self.sealed => self.commit(),
            Step::Commit => {}
            Step::Apply => self.apply(),
        }
    }

    fn seal(&mut self) {
        if self.sealed == 0 {
            self.pair.finish_copy();
        }
        self.sealed += 1;
        self.pair.primary.disk.seal(Epoch(self.sealed)).unwrap();
        self.snapshots.insert(self.sealed, self.model.clone());
    }

    fn commit(&mut self) {
        self.committed += 1;
        self.pair.await_staged(self.committed);
        self.pair.commit(self.committed);
        if self.applied > 0 {
            self.assert_standby_at(self.applied);
        }
    }

    fn apply(&mut self) {
        self.pair.standby.disk.apply(Epoch(self.committed)).unwrap();
        self.applied = self.committed;
        if self.applied > 0 {
            self.assert_standby_at(self.applied);
        }
    }

    fn assert_standby_at(&self, epoch: u64) {
        assert!(self.pair.image(STANDBY) == self.snapshots[&epoch], "the standby is not at epoch {epoch}");
    }

    /// The primary is lost; the standby takes over, and both disks go on alone.
    fn end(mut self) {
        self.pair.wire.cut();
        if self.committed == 0 {
            assert!(self.pair.standby.disk.activate(Epoch(1)).is_err());
            return;
        }
        self.pair.standby.disk.activate(Epoch(self.committed)).unwrap();
        assert!(self.pair.standby.read_all() == self.snapshots[&self.committed]);
        self.pair.standby.disk.block().write(3, b"standby", true).unwrap();
        assert!(self.pair.primary.read_all() == self.model);
        self.pair.block.write(3, b"primary", false).unwrap();
        self.model[3..10].copy_from_slice(b"primary");
        assert!(self.pair.image(PRIMARY) == self.model);
        let mut standby = self.snapshots.remove(&self.committed).unwrap();
        standby[3..10].copy_from_slice(b"standby");
        assert!(self.pair.image(STANDBY) == standby);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn both_sides_do_what_the_model_does(
        extents in vec(range(), 0..4),
        steps in vec(step(), 1..60),
        capacity in 1..6_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let model = sparse(dir.path(), &extents);
        // The standby's image is full of something else.
        fs::write(dir.path().join(STANDBY), pattern(SIZE, 99)).unwrap();
        let pair = Pair::copying_in(dir, 64 * MIB);
        pair.wire.change(|s| s.capacity = capacity);
        let mut run = Run { pair, model, snapshots: BTreeMap::new(), sealed: 0, committed: 0, applied: 0 };
        steps.iter().for_each(|s| run.step(s));
        run.end();
    }
}
