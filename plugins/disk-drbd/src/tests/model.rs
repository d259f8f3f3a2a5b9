//! Random runs against a model: a plain vector of bytes and a snapshot of each epoch.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: usize = 256 * 1024 + 512;

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
    Flush,
    Seal,
    /// Commits the oldest epoch that is not, waiting until it is staged.
    Commit,
    /// DRBD's own link, not the channel.
    Link(bool),
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
        1 => Just(Step::Flush),
        3 => Just(Step::Seal),
        3 => Just(Step::Commit),
        1 => any::<bool>().prop_map(Step::Link),
    ]
}

struct Run {
    pair: Pair,
    /// The guest's disk.
    model: Vec<u8>,
    /// The disk at the end of each epoch.
    snapshots: BTreeMap<u64, Vec<u8>>,
    /// The disk after each step, and the epoch that was open then.
    history: Vec<(u64, Vec<u8>)>,
    sealed: u64,
    committed: u64,
}

impl Run {
    fn step(&mut self, step: &Step) {
        let open = self.sealed + 1;
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
            Step::Flush => block.flush().unwrap(),
            Step::Seal => self.seal(),
            Step::Commit if self.committed < self.sealed => self.commit(),
            Step::Commit => {}
            Step::Link(up) => {
                let connection = if up { Connection::Connected } else { Connection::Connecting };
                self.pair.twin.connect(connection);
            }
        }
        self.history.push((open, self.model.clone()));
        assert!(self.pair.primary.read_all() == self.model, "the guest reads something else after {step:?}");
    }

    fn seal(&mut self) {
        self.sealed += 1;
        self.pair.seal(self.sealed);
        self.snapshots.insert(self.sealed, self.model.clone());
    }

    fn commit(&mut self) {
        if self.committed == 0 {
            // Epoch 1 waits for DRBD.
            self.pair.twin.connect(Connection::Connected);
        }
        self.committed += 1;
        self.pair.await_staged(self.committed);
        self.pair.commit(self.committed);
    }

    /// Whether each byte was the guest's at some moment of a committed epoch, or before the first.
    fn assert_committed_only(&self, file: &[u8]) {
        let known: Vec<_> =
            self.history.iter().filter(|(of, _)| *of <= self.committed).map(|(_, s)| s).collect();
        let bad = (0..SIZE).find(|i| known.iter().all(|s| s[*i] != file[*i]));
        assert_eq!(bad, None, "this byte is in no epoch up to {}", self.committed);
    }

    /// The primary's host is lost, DRBD's link having brought across any part of what it was given.
    fn lose_primary(mut self, torn: Vec<bool>) {
        let Pair { primary, standby, twin, .. } = &mut self.pair;
        if self.committed == 0 {
            assert!(standby.disk.activate(Epoch(1)).is_err());
            return;
        }
        // The host is gone: nothing is written to its file any more.
        twin.connect(Connection::Connecting);
        primary.disk.device.close();
        let first = fs::read(&twin.files[0]).unwrap();
        twin.tear(torn.into_iter().cycle());
        standby.disk.activate(Epoch(self.committed)).unwrap();
        let due = &self.snapshots[&self.committed];
        assert!(standby.read_all() == *due, "epoch {} was taken over with other bytes", self.committed);
        assert!(twin.file(1) == *due);
        self.assert_committed_only(&first);
    }

    /// The standby is lost, and the primary goes on alone.
    fn go_on_alone(mut self) {
        self.pair.primary.disk.disengage(aventine_api::Disengage::Owner).unwrap();
        self.pair.block.write(3, b"alone", false).unwrap();
        self.model[3..8].copy_from_slice(b"alone");
        assert!(self.pair.primary.read_all() == self.model);
        self.pair.block.flush().unwrap();
        assert!(self.pair.twin.file(0) == self.model, "what was flushed is not on the device");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn both_sides_do_what_the_model_does(
        before in vec(step(), 0..6),
        steps in vec(step(), 1..50),
        torn in vec(any::<bool>(), 1..17),
        alone in prop::bool::weighted(0.3),
    ) {
        let model = pattern(SIZE, 1);
        let pair = Pair::joined(&model, BUFFER);
        pair.await_ready();
        let mut run = Run { pair, model, snapshots: BTreeMap::new(), history: vec![(0, pattern(SIZE, 1))], sealed: 0, committed: 0 };
        before.iter().filter(|s| !matches!(s, Step::Seal | Step::Commit)).for_each(|s| run.step(s));
        steps.iter().for_each(|s| run.step(s));
        if alone { run.go_on_alone() } else { run.lose_primary(torn) }
    }
}
