//! Random runs against a model: a plain vector of bytes, and a snapshot of it for each sealed epoch.

use super::desk::{Desk, Half, Seen, done, pattern, same};
use super::{Difference, DiskBench, differs};
use aventine_api::{Disengage, Epoch, Side};
use std::collections::BTreeMap;
use std::sync::Arc;

const STEPS: usize = 60;

fn size<B: DiskBench>() -> usize {
    (300_000_usize + 1001).next_multiple_of(B::GRAIN)
}

/// xorshift64*: the same run for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn is(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Offset and length inside the disk: mostly small and near each other, sometimes long.
    fn range<B: DiskBench>(&mut self) -> (usize, usize) {
        if self.below(7) == 0 {
            let at = self.below(size::<B>());
            (at, 1 + self.below(size::<B>() - at))
        } else {
            (self.below(20_000), 1 + self.below(12_000))
        }
    }
}

struct Run<B> {
    desk: Desk<B>,
    random: Random,
    /// The guest's disk at the end of each sealed epoch of this session.
    snapshots: BTreeMap<u64, Vec<u8>>,
    sealed: u64,
    committed: u64,
    applied: u64,
}

pub(super) fn a_model_agrees<B: DiskBench>(_: &str) -> Seen {
    for seed in 1..=B::RUNS {
        let mut told = Vec::new();
        run::<B>(seed, &mut told).map_err(|seen| format!("{seen}\n  seed {seed}: {}", told.join(", ")))?;
    }
    Ok(())
}

fn run<B: DiskBench>(seed: u64, told: &mut Vec<String>) -> Seen {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut contents = vec![0; size::<B>()];
    for _ in 0..random.below(4) {
        let (at, len) = random.range::<B>();
        contents[at..at + len].copy_from_slice(&pattern(len, at as u8));
    }
    let standby = random.is().then(|| pattern(size::<B>(), 99));
    let mut desk = Desk::on(B::new(&contents, standby.as_deref()), contents)?;
    desk.connect()?;
    let mut run = Run { desk, random, snapshots: BTreeMap::new(), sealed: 0, committed: 0, applied: 0 };
    for _ in 0..run.random.below(STEPS) {
        run = run.step(told)?;
    }
    told.push("takeover".to_owned());
    run.end()
}

impl<B: DiskBench> Run<B> {
    fn step(mut self, told: &mut Vec<String>) -> Result<Run<B>, String> {
        let step = self.random.below(24);
        let (at, len) = self.random.range::<B>();
        let fua = self.random.below(10) == 0;
        told.push(match step {
            0..8 => {
                let data = pattern(len, self.random.below(256) as u8);
                self.desk.write(at, &data, fua)?;
                format!("write {len} at {at}")
            }
            8..10 => {
                let unmap = self.random.is();
                self.desk.zero(at, len, unmap, fua)?;
                format!("zero {len} at {at}")
            }
            10 => {
                self.desk.trim(at, len)?;
                format!("trim {len} at {at}")
            }
            11 => {
                done("`flush`", self.desk.primary.block.flush())?;
                "flush".to_owned()
            }
            12 => {
                self.desk.expect_primary("at a read of all")?;
                "read".to_owned()
            }
            13 => {
                self.desk.primary.disk.pausing();
                "pausing".to_owned()
            }
            14..18 => {
                self.seal()?;
                format!("seal {}", self.sealed)
            }
            18..21 => {
                self.commit()?;
                format!("commit {}", self.committed)
            }
            21..23 => {
                self.apply()?;
                format!("apply {}", self.applied)
            }
            _ => {
                told.push("loss, new session".to_owned());
                return self.lose();
            }
        });
        Ok(self)
    }

    fn seal(&mut self) -> Seen {
        if self.sealed == 0 {
            self.desk.finish_copy()?;
        }
        if self.sealed - self.committed >= u64::from(self.desk.primary.disk.depth()) {
            return Ok(());
        }
        self.sealed += 1;
        done("`seal`", self.desk.primary.disk.seal(Epoch(self.sealed)))?;
        self.snapshots.insert(self.sealed, self.desk.model.clone());
        Ok(())
    }

    fn commit(&mut self) -> Seen {
        if self.committed == self.sealed {
            return Ok(());
        }
        self.committed += 1;
        self.desk.await_staged(self.committed)?;
        self.desk.commit(self.committed)?;
        if differs::<B>(Difference::AppliedBelow) {
            self.applied = self.committed;
        }
        self.expect_standby("after `commit`")
    }

    fn apply(&mut self) -> Seen {
        self.desk.apply(self.committed)?;
        self.applied = self.committed;
        self.expect_standby("after `apply`")
    }

    fn expect_standby(&self, when: &str) -> Seen {
        match self.snapshots.get(&self.applied) {
            Some(due) => {
                self.desk.expect_standby(due, &format!("{when}, with epoch {} applied", self.applied))
            }
            // The copy may be under way.
            None => Ok(()),
        }
    }

    /// The channel is lost; a new session begins, and the guest writes in between.
    fn lose(self) -> Result<Run<B>, String> {
        let Run { mut desk, mut random, .. } = self;
        desk.wire.cut();
        let (at, len) = random.range::<B>();
        desk.write(at, &pattern(len, 77), false)?;
        if random.is() {
            desk.primary.host.wait(B::PATIENCE, |h| h.failed.is_some());
        }
        done("`disengage(Owner)`", desk.primary.disk.disengage(Disengage::Owner))?;
        desk.write(at / 2, &pattern(len, 78), false)?;
        let desk = desk.new_session()?;
        Ok(Run { desk, random, snapshots: BTreeMap::new(), sealed: 0, committed: 0, applied: 0 })
    }

    /// The primary is lost; the standby takes over, and both disks go on alone.
    fn end(mut self) -> Seen {
        self.desk.wire.cut();
        if self.committed == 0 {
            return match self.desk.standby.disk.activate(Epoch(1)) {
                Err(_) => Ok(()),
                Ok(()) => Err("an epoch was activated, and none was committed".to_owned()),
            };
        }
        self.desk.activate(self.committed)?;
        let mut due = self.snapshots.remove(&self.committed).unwrap_or_default();
        self.desk.expect_standby(&due, &format!("after `activate({})`", self.committed))?;
        let Desk { standby: Half { block, .. }, .. } = &self.desk;
        done("a write after `activate`", Arc::clone(block).write(3, b"standby", true))?;
        due[3..10].copy_from_slice(b"standby");
        self.desk.write(3, b"primary", false)?;
        done("`disengage(Owner)`", self.desk.primary.disk.disengage(Disengage::Owner))?;
        self.desk.expect_primary("alone")?;
        same("the primary's image", &self.desk.bench.image(Side::Primary), &self.desk.model, "alone")?;
        self.desk.expect_standby(&due, "alone")
    }
}
