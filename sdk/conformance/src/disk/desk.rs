//! A bench with both disks, the channel between them, and a model of what they hold.

use super::host::Listening;
use super::wire::Wire;
use super::{Difference, DiskBench, differs};
pub(super) use crate::suite::Seen;
use aventine_api::{BlockDevice, Disk, Epoch, ErrorCode, PluginError, Side};
use std::fmt::Display;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// Bytes of an ordinary disk: not a multiple of anything, unless it must be.
pub(super) fn size<B: DiskBench>() -> usize {
    ((1_usize << 20) + 1001).next_multiple_of(B::GRAIN)
}

/// Bytes that tell their place and `seed`.
pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(167).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

/// An error as a case tells it.
pub(super) fn done<T>(what: impl Display, answer: Result<T, PluginError>) -> Result<T, String> {
    answer.map_err(|e| format!("{what} failed: {}", e.chain()))
}

/// What is wrong with `got`, where `due` was expected.
pub(super) fn same(whose: &str, got: &[u8], due: &[u8], when: &str) -> Seen {
    if got.len() != due.len() {
        return Err(format!("{when}, {whose} has {} bytes, not {}", got.len(), due.len()));
    }
    match got.iter().zip(due).position(|(a, b)| a != b) {
        Some(at) => Err(format!("{when}, byte {at} of {whose} is {:#04x}, not {:#04x}", got[at], due[at])),
        None => Ok(()),
    }
}

/// One side.
pub(super) struct Half {
    pub(super) disk: Box<dyn Disk>,
    pub(super) block: Arc<dyn BlockDevice>,
    pub(super) host: Arc<Listening>,
    /// Whether it has taken over.
    pub(super) active: bool,
}

impl Half {
    pub(super) fn make<B: DiskBench>(bench: &B, side: Side) -> Result<Half, String> {
        let host = Arc::new(Listening::default());
        let disk = done(format!("making the {}'s disk", side.name()), bench.make(side, host.clone()))?;
        let block = disk.block();
        Ok(Half { disk, block, host, active: false })
    }

    /// All that the device reads.
    pub(super) fn read(&self) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.block.size() as usize];
        done("reading the whole device", self.block.read(0, &mut bytes))?;
        Ok(bytes)
    }

    /// A standby's device can be read, or is closed as the bench says.
    pub(super) fn expect_readable<B: DiskBench>(&self, when: &str) -> Seen {
        match self.block.read(0, &mut [0; 4096]) {
            Err(e) if differs::<B>(Difference::ClosedStandby) && e.code() == ErrorCode::Unavailable => Ok(()),
            Ok(()) if differs::<B>(Difference::ClosedStandby) => {
                Err(format!("{when}, the standby's device can be read, and is said to be closed"))
            }
            answer => done(format!("{when}, reading the standby's device"), answer),
        }
    }

    /// The device's writing verbs, each tried; those that were carried out.
    pub(super) fn writes(&self) -> Vec<&'static str> {
        let block = &self.block;
        let tried = [
            ("write", block.write(5, b"written", false)),
            ("write with fua", block.write(5, b"written", true)),
            ("write_zeroes", block.write_zeroes(50, 9, true, false)),
            ("trim", block.trim(50, 9)),
        ];
        tried.into_iter().filter(|(_, answer)| answer.is_ok()).map(|(verb, _)| verb).collect()
    }
}

/// Both sides.
pub(super) struct Desk<B> {
    // Dropped first: it ends what waits for it.
    pub(super) wire: Wire,
    pub(super) primary: Half,
    pub(super) standby: Half,
    /// What the guest's disk holds.
    pub(super) model: Vec<u8>,
    pub(super) bench: B,
}

impl<B: DiskBench> Desk<B> {
    /// Two disks that know nothing of each other, on a primary's image of `contents` and no image of the standby.
    pub(super) fn apart(contents: Vec<u8>) -> Result<Desk<B>, String> {
        Desk::on(B::new(&contents, None), contents)
    }

    /// The same on images that are there.
    pub(super) fn on(bench: B, model: Vec<u8>) -> Result<Desk<B>, String> {
        let primary = Half::make(&bench, Side::Primary)?;
        let standby = Half::make(&bench, Side::Standby)?;
        Ok(Desk { primary, standby, wire: Wire::new(), model, bench })
    }

    /// Two disks, the copy made, the first epoch committed and applied.
    pub(super) fn armed(contents: Vec<u8>) -> Result<Desk<B>, String> {
        let mut desk = Desk::apart(contents)?;
        desk.connect()?;
        desk.finish_copy()?;
        desk.epoch(1)?;
        Ok(desk)
    }

    /// Begins a session.
    pub(super) fn connect(&mut self) -> Seen {
        let (tx, rx) = self.wire.ends();
        let (listens, answers) = self.wire.back();
        done("`replicate`", self.primary.disk.replicate(tx, Some(listens)))?;
        done("`receive`", self.standby.disk.receive(rx, answers))
    }

    /// The channel is lost; a session with a standby of its own begins.
    pub(super) fn new_session(self) -> Result<Desk<B>, String> {
        let Desk { wire, primary, standby, model, bench } = self;
        // Both hold what the new ones need.
        drop((wire, standby));
        let standby = Half::make(&bench, Side::Standby)?;
        let mut desk = Desk { wire: Wire::new(), primary, standby, model, bench };
        desk.connect()?;
        Ok(desk)
    }

    pub(super) fn finish_copy(&self) -> Seen {
        let deadline = Instant::now() + B::PATIENCE;
        loop {
            let progress = self.primary.disk.progress();
            if progress.done == progress.total && progress.total > 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("the copy stands at {progress:?} after {:?}", B::PATIENCE));
            }
            thread::yield_now();
        }
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8], fua: bool) -> Seen {
        done(
            format_args!("writing {} bytes at {at}", data.len()),
            self.primary.block.write(at as u64, data, fua),
        )?;
        self.model[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    pub(super) fn zero(&mut self, at: usize, len: usize, unmap: bool, fua: bool) -> Seen {
        let answer = self.primary.block.write_zeroes(at as u64, len as u64, unmap, fua);
        done(format_args!("`write_zeroes` of {len} bytes at {at}"), answer)?;
        self.model[at..at + len].fill(0);
        Ok(())
    }

    pub(super) fn trim(&mut self, at: usize, len: usize) -> Seen {
        done(format_args!("`trim` of {len} bytes at {at}"), self.primary.block.trim(at as u64, len as u64))?;
        self.model[at..at + len].fill(0);
        Ok(())
    }

    pub(super) fn seal(&mut self, epoch: u64) -> Seen {
        self.primary.disk.pausing();
        done(format_args!("`seal({epoch})`"), self.primary.disk.seal(Epoch(epoch)))
    }

    /// Waits until the standby has said that it holds `epoch`.
    pub(super) fn await_staged(&self, epoch: u64) -> Seen {
        let heard = self.standby.host.wait(B::PATIENCE, |h| h.failed.is_some() || h.staged.contains(&epoch));
        match heard.failed {
            _ if heard.staged.contains(&epoch) => Ok(()),
            Some((_, why)) => Err(format!("the standby failed before epoch {epoch} was staged: {why}")),
            None => Err(format!("epoch {epoch} was not reported as staged in {:?}", B::PATIENCE)),
        }
    }

    pub(super) fn commit(&mut self, epoch: u64) -> Seen {
        done(format_args!("`commit({epoch})`"), self.standby.disk.commit(Epoch(epoch)))?;
        self.release(epoch)
    }

    /// As the engine does it: again while the disk asks for time.
    pub(super) fn release(&mut self, epoch: u64) -> Seen {
        let deadline = Instant::now() + B::PATIENCE;
        loop {
            match self.primary.disk.release(Epoch(epoch)) {
                Err(e) if e.code() == ErrorCode::TimedOut && Instant::now() < deadline => thread::yield_now(),
                answer => return done(format_args!("`release({epoch})`"), answer),
            }
        }
    }

    pub(super) fn apply(&mut self, epoch: u64) -> Seen {
        done(format_args!("`apply({epoch})`"), self.standby.disk.apply(Epoch(epoch)))
    }

    pub(super) fn activate(&mut self, epoch: u64) -> Seen {
        done(format_args!("`activate({epoch})`"), self.standby.disk.activate(Epoch(epoch)))?;
        self.standby.active = true;
        Ok(())
    }

    /// A whole epoch.
    pub(super) fn epoch(&mut self, epoch: u64) -> Seen {
        self.seal(epoch)?;
        self.await_staged(epoch)?;
        self.commit(epoch)?;
        self.apply(epoch)
    }

    /// The guest reads what it wrote.
    pub(super) fn expect_primary(&self, when: &str) -> Seen {
        same("the guest's disk", &self.primary.read()?, &self.model, when)
    }

    /// The standby holds `due`, in its image and through its device.
    pub(super) fn expect_standby(&self, due: &[u8], when: &str) -> Seen {
        let deadline = Instant::now() + B::PATIENCE;
        loop {
            match same("the standby's image", &self.bench.image(Side::Standby), due, when) {
                Err(_) if differs::<B>(Difference::AppliedBelow) && Instant::now() < deadline => {}
                Err(seen) => return Err(seen),
                Ok(()) => break,
            }
            thread::yield_now();
        }
        if differs::<B>(Difference::ClosedStandby) && !self.standby.active {
            return self.standby.expect_readable::<B>(when);
        }
        same("the standby's device", &self.standby.read()?, due, when)
    }

    /// Standby and guest have the same disk.
    pub(super) fn expect_equal(&self, when: &str) -> Seen {
        self.expect_primary(when)?;
        self.expect_standby(&self.model, when)
    }
}
