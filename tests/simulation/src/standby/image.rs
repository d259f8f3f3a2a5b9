//! What arrives is staged, and what is committed reaches the memory image and the disks.

use super::{Staged, StandbySession, Todo};
use crate::breaks::Break;
use crate::guest::{DISKS, PAGES};
use crate::network::Message;
use crate::promise::Promise;
use crate::world::{World, note};
use aventine_api::Epoch;
use aventine_protocol::{StandbyAction, StandbyEvent};

impl World {
    pub(super) fn pages_receive(&mut self, message: Message) {
        let at_once = self.is(Break::PagesApplyOnArrival);
        let early = self.is(Break::AcknowledgeWhenPagesArrive);
        let Some(session) = &mut self.standby.session else { return };
        match message {
            Message::CopyMemory(memory) => session.image.memory = memory,
            Message::Pages(_, pages) => {
                session.arriving = pages;
                if at_once {
                    take_pages(&mut session.image.memory, &pages);
                }
            }
            Message::CheckpointEnd { epoch, armed, device } => {
                let pages = std::mem::take(&mut session.arriving);
                session.staged.push_back(Staged { epoch, pages, device });
                if early {
                    session.todo.push_back(Todo::Act(StandbyAction::Acknowledge(epoch)));
                    return;
                }
                self.standby_event(StandbyEvent::PagesStaged { epoch, armed });
            }
            _ => {}
        }
    }

    pub(super) fn disk_receives(&mut self, disk: usize, message: Message) {
        let at_once = self.is(Break::DisksApplyOnArrival);
        let Some(session) = &mut self.standby.session else { return };
        match message {
            Message::CopyDisk(content) => session.image.disks[disk] = content,
            Message::Write { epoch, block, value } if epoch == Epoch::COPY || at_once => {
                self.disk_takes(disk, epoch, block, value);
            }
            Message::Write { epoch, block, value } => {
                session.disks[disk].writes.push_back((epoch, block, value));
            }
            Message::Barrier(epoch) => {
                session.disks[disk].barrier = epoch;
                self.standby_event(StandbyEvent::DiskStaged { disk, epoch });
            }
            _ => {}
        }
    }

    /// A write reaches the image of a disk.
    fn disk_takes(&mut self, disk: usize, epoch: Epoch, block: usize, value: u64) {
        if epoch > self.truth.committed {
            self.broken(
                Promise::OneEpochNumber,
                format!("disk {disk} takes a write of epoch {epoch} before that is committed"),
            );
        }
        if let Some(session) = &mut self.standby.session {
            session.image.disks[disk][block] = value;
        }
    }

    /// Whether this application is the one that fails; it then has done half of its work.
    fn apply_fails(&mut self, part: u8) -> bool {
        let ignored = self.is(Break::FailedApplyIgnored);
        let Some(session) = &mut self.standby.session else { return true };
        if session.fail_apply != Some(part) {
            return false;
        }
        session.fail_apply = None;
        note!(self, "    applying fails half-way");
        self.truth.half_applied = true;
        if !ignored {
            self.fails();
        }
        true
    }

    fn skips_apply(&self) -> bool {
        let dropped = |s: &StandbySession| self.is(Break::InterruptedApplyDropped) && s.channel_lost;
        self.standby.session.as_ref().is_none_or(|s| s.failed || dropped(s))
    }

    pub(super) fn apply_memory(&mut self, epoch: Epoch) {
        if self.skips_apply() || self.apply_fails(0) {
            return;
        }
        let Some(session) = &mut self.standby.session else { return };
        while let Some(next) = session.staged.front().copied().filter(|s| s.epoch <= epoch) {
            session.staged.pop_front();
            take_pages(&mut session.image.memory, &next.pages);
            session.image.device = next.device;
        }
    }

    pub(super) fn apply_disk(&mut self, disk: usize, epoch: Epoch) {
        if self.skips_apply() {
            return;
        }
        let first = self.standby.session.as_ref().and_then(|s| s.disks[disk].writes.front().copied());
        if self.standby.session.as_ref().is_some_and(|s| s.fail_apply == Some(1 + disk as u8)) {
            if let Some((e, block, value)) = first.filter(|(e, ..)| *e <= epoch) {
                self.disk_takes(disk, e, block, value);
            }
            self.apply_fails(1 + disk as u8);
            return;
        }
        loop {
            let Some(session) = &mut self.standby.session else { return };
            let writes = &mut session.disks[disk].writes;
            let Some((e, block, value)) = writes.front().copied().filter(|(e, ..)| *e <= epoch) else {
                break;
            };
            writes.pop_front();
            self.disk_takes(disk, e, block, value);
        }
        if disk == DISKS - 1 {
            self.compare(epoch, Promise::NothingSilent, "after it was applied");
        }
    }

    pub(super) fn compare(&mut self, epoch: Epoch, missing: Promise, when: &str) {
        let Some(session) = self.standby.session.as_ref().filter(|_| !self.truth.half_applied) else {
            return;
        };
        let truth = self.truth.snapshot(epoch);
        if let Some((promise, how)) = session.image.differs(&truth, missing) {
            let image = session.image;
            self.broken(promise, format!("epoch {epoch} {when}: {how} ({image:?}, not {truth:?})"));
        }
    }
}

fn take_pages(memory: &mut [u64; PAGES], pages: &[Option<u64>; PAGES]) {
    for (page, new) in memory.iter_mut().zip(pages) {
        *page = new.unwrap_or(*page);
    }
}
