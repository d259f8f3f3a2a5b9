//! What the primary's guest writes and says, what a seal takes of it, and what reaches the world.

use crate::breaks::Break;
use crate::guest::{DISKS, Mode};
use crate::network::{Lane, Message};
use crate::promise::Promise;
use crate::world::{World, note};
use aventine_api::{Epoch, Side};

impl World {
    pub(crate) fn guest_runs(&mut self, what: u8) -> bool {
        let what = usize::from(what);
        let (page, block, disk, writes) = (what & 3, (what >> 2) & 3, (what >> 4) & 1, what & 0x20 == 0);
        let forget = self.is(Break::WriteNotReplicated) && what >= 0xc0;
        let runs = self.primary.up && !self.primary.frozen;
        let Some(guest) = self.primary.guest.as_mut().filter(|_| runs) else { return false };
        self.primary.steps += 1;
        let step = self.primary.steps;
        guest.state.device = step;
        guest.state.memory[page] = step;
        guest.dirty[page] = true;
        if writes {
            guest.state.disks[disk][block] = step;
            if let Some(session) = self.primary.session.as_ref().filter(|s| !s.aborted && !forget) {
                let write = Message::Write { epoch: session.open, block, value: step };
                self.send(Lane::Disk(disk), write);
            }
        }
        match self.primary.buffer.mode {
            Mode::Passing => {
                self.truth.unheard.push_back((step, None));
                self.leaves(step);
            }
            Mode::Holding => {
                self.truth.unheard.push_back((step, None));
                self.primary.buffer.held.push_back((step, None));
            }
            Mode::Silent => {}
        }
        true
    }

    /// A frame reaches the world.
    fn leaves(&mut self, frame: u64) {
        note!(self, "    frame {frame} leaves");
        let Some((due, epoch)) = self.truth.unheard.pop_front() else {
            return self.broken(Promise::NothingSilent, format!("frame {frame} left twice"));
        };
        let acknowledged = epoch.is_some_and(|e| e <= self.truth.acknowledged);
        if due != frame {
            self.broken(Promise::NothingSilent, format!("frame {frame} left where frame {due} was due"));
        }
        if !self.truth.primary_owns && !acknowledged {
            self.broken(
                Promise::OutputCommit,
                format!(
                    "frame {frame} left before the acknowledgement of its epoch ({epoch:?}) was received"
                ),
            );
        }
        // What an epoch explains may still be on its way when the standby resumes from it.
        if self.standby.active.is_some_and(|resumed| frame > resumed.device) {
            self.broken(Promise::OneOwner, format!("frame {frame} is unknown to the standby that took over"));
        }
        self.truth.heard = frame;
    }

    pub(crate) fn seal(&mut self) -> bool {
        if !self.primary_listens() {
            return false;
        }
        let Some(session) = &mut self.primary.session else { return false };
        let Some(guest) = self.primary.guest.as_mut().filter(|_| session.machine.may_seal()) else {
            return false;
        };
        let (epoch, armed) = match session.machine.seal() {
            Ok(sealed) => sealed,
            Err(violation) => {
                self.broken(Promise::NothingSilent, violation.to_string());
                return true;
            }
        };
        let state = guest.state;
        let dirty = std::mem::take(&mut guest.dirty);
        let mut pages = [0, 1, 2, 3].map(|page| dirty[page].then_some(state.memory[page]));
        self.primary.buffer.seal(epoch);
        self.truth.seal(epoch, armed, self.primary.buffer.mode == Mode::Holding, state);
        note!(self, "    epoch {epoch} (armed: {armed}) is step {}", state.device);
        if self.is(Break::DiskSealedAfterResume) && epoch.0 > 2 {
            self.guest_runs(state.device as u8 & 0x1f);
        }
        if let Some(session) = &mut self.primary.session {
            session.open = epoch.next();
            self.primary.frozen =
                session.machine.is_final() && self.plant != Some(Break::HandedOverGuestRunsOn);
        }
        if self.is(Break::DirtyPageLost) && epoch.0 > 1 {
            pages[0] = None;
        }
        if self.is(Break::FrameDropped) && self.primary.buffer.held.len() > 2 {
            self.primary.buffer.held.pop_front();
        }
        (0..DISKS).for_each(|n| self.send(Lane::Disk(n), Message::Barrier(epoch)));
        self.send(Lane::Pages, Message::Pages(epoch, pages));
        self.send(Lane::Pages, Message::CheckpointEnd { epoch, armed, device: state.device });
        if self.is(Break::ReleaseWhenSent) {
            self.release(epoch);
        }
        true
    }

    pub(super) fn release(&mut self, epoch: Epoch) {
        while let Some(frame) = self.primary.buffer.pop(epoch) {
            self.leaves(frame);
        }
    }

    pub(super) fn goes_on_as_owner(&mut self, session: usize) {
        let owns = self.truth.primary_owns
            || self.truth.renounced
            || self.arbiter.owner(session) == Some(Side::Primary);
        if !owns {
            self.broken(
                Promise::OneOwner,
                "the primary goes on alone without the arbiter's or the standby's word",
            );
        }
        self.truth.primary_owns = true;
        self.primary.frozen &= self.is(Break::HandoverLeavesGuestPaused);
        self.primary.buffer.mode = Mode::Passing;
        while let Some((frame, _)) = self.primary.buffer.held.pop_front() {
            self.leaves(frame);
        }
    }
}
