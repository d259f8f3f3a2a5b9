//! The standby's host: the engine's part around the machine.

mod image;

use crate::breaks::Break;
use crate::guest::{DISKS, PAGES, State};
use crate::network::{Arrival, Lane, Message};
use crate::promise::Promise;
use crate::truth::Truth;
use crate::world::{World, note};
use aventine_api::{Epoch, Side};
use aventine_protocol::{EndReason, Standby, StandbyAction, StandbyEvent, StandbyState};
use std::collections::VecDeque;

/// What the engine does next.
#[derive(Clone, Debug)]
enum Todo {
    Act(StandbyAction),
    ApplyMemory(Epoch),
    ApplyDisk(usize, Epoch),
}

/// A checkpoint that is complete and checked.
#[derive(Clone, Copy, Debug)]
struct Staged {
    epoch: Epoch,
    pages: [Option<u64>; PAGES],
    device: u64,
}

/// A disk's writes that are not in the image.
#[derive(Default)]
struct StagedDisk {
    /// Epoch, block, value; in the order of the writes.
    writes: VecDeque<(Epoch, usize, u64)>,
    barrier: Epoch,
}

pub(crate) struct StandbySession {
    pub(crate) id: usize,
    pub(crate) machine: Standby,
    todo: VecDeque<Todo>,
    arriving: [Option<u64>; PAGES],
    staged: VecDeque<Staged>,
    disks: [StagedDisk; DISKS],
    image: State,
    channel_lost: bool,
    /// Whether it still says that it is alive.
    pub(crate) heartbeat: bool,
    failed: bool,
    fail_commit: bool,
    /// Part whose next application fails.
    fail_apply: Option<u8>,
}

pub(crate) struct StandbyHost {
    up: bool,
    pub(crate) session: Option<StandbySession>,
    /// What the guest resumed from, once this side owns it. It stays the owner even if it crashes.
    pub(crate) active: Option<State>,
}

impl StandbyHost {
    pub(crate) fn new(up: bool) -> StandbyHost {
        StandbyHost { up, session: None, active: None }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    pub(crate) fn wants_session(&self) -> bool {
        self.up && self.session.is_none() && self.active.is_none()
    }

    pub(crate) fn begin(&mut self, id: usize, plant: Option<Break>) {
        self.session = Some(StandbySession {
            id,
            machine: Break::standby(plant),
            todo: VecDeque::new(),
            arriving: [None; PAGES],
            staged: VecDeque::new(),
            disks: Default::default(),
            image: State::default(),
            channel_lost: false,
            heartbeat: true,
            failed: false,
            fail_commit: false,
            fail_apply: None,
        });
    }

    pub(crate) fn restart(&mut self) -> bool {
        !std::mem::replace(&mut self.up, true)
    }

    pub(crate) fn fail_next_commit(&mut self) -> bool {
        self.session.as_mut().is_some_and(|s| !std::mem::replace(&mut s.fail_commit, true))
    }

    pub(crate) fn fail_next_apply(&mut self, part: u8) -> bool {
        self.session.as_mut().is_some_and(|s| s.fail_apply.replace(part % (1 + DISKS as u8)).is_none())
    }

    /// Whether nothing but this side itself keeps it from taking the guest over.
    pub(crate) fn could_promote(&self, truth: &Truth) -> bool {
        self.up && truth.armed() && truth.standby_sound && !truth.standby_told && self.active.is_none()
    }
}

impl World {
    pub(crate) fn standby_listens(&self) -> bool {
        // A session that has ended no longer reads.
        let free =
            |s: &StandbySession| s.todo.is_empty() && !matches!(s.machine.state(), StandbyState::Ended(_));
        self.standby.session.as_ref().is_some_and(free)
    }

    pub(crate) fn standby_follows(&self) -> bool {
        let follows = |s: &StandbySession| *s.machine.state() == StandbyState::Following;
        self.standby_listens() && self.standby.session.as_ref().is_some_and(follows)
    }

    pub(crate) fn standby_receives(&mut self, lane: Lane, arrival: Arrival) {
        let message = match arrival {
            Arrival::Gap(_) if !self.is(Break::GapUnnoticed) => {
                note!(self, "    a message before this one is missing");
                self.truth.standby_sound = false;
                self.standby_event(StandbyEvent::Failed(String::new()));
                return;
            }
            Arrival::Gap(message) | Arrival::Message(message) => message,
        };
        note!(self, "    {message:?}");
        match (message, lane) {
            (Message::End(reason), _) => self.told_to_end(reason),
            (Message::Yield, _) => {
                self.standby_event(StandbyEvent::Yield);
            }
            (Message::HandOver, _) => {
                self.standby_event(StandbyEvent::HandOver);
            }
            (message, Lane::Disk(disk)) => self.disk_receives(disk, message),
            (message, _) => self.pages_receive(message),
        }
    }

    fn told_to_end(&mut self, reason: EndReason) {
        let follows = self.standby_follows();
        self.truth.standby_told |= follows || reason == EndReason::GuestShutDown;
        self.standby_event(StandbyEvent::End(reason));
        let ended = self.standby.session.as_ref().and_then(|s| match s.machine.state() {
            StandbyState::Ended(reason) => reason.clone(),
            _ => None,
        });
        if follows && ended != self.truth.end {
            let truth = self.truth.end.clone();
            self.broken(
                Promise::AnEndingHasAReason,
                format!("protection ends for {truth:?}, and the standby makes {ended:?} of it"),
            );
        }
    }

    pub(crate) fn channel_lost(&mut self) -> bool {
        let Some(session) = &mut self.standby.session else { return false };
        session.channel_lost = true;
        if self.is(Break::EndOfStreamIsProofForStandby) {
            self.standby_event(StandbyEvent::PeerLost);
        }
        true
    }

    /// A channel was lost and the primary lives: the session cannot go on.
    pub(crate) fn channel_timeout(&mut self) -> bool {
        let lost = self.standby.session.as_ref().is_some_and(|s| s.channel_lost);
        let lives = !self.hears_nothing(Side::Standby);
        if !(lost && lives && self.standby_follows()) {
            return false;
        }
        self.truth.standby_sound = false;
        self.standby_event(StandbyEvent::Failed(String::new()))
    }

    /// Steps the machine; what it says is carried out later, one thing after the other. `false` when the loop is busy.
    pub(crate) fn standby_event(&mut self, event: StandbyEvent) -> bool {
        if !self.standby_listens() {
            return false;
        }
        self.step_standby(event);
        true
    }

    fn step_standby(&mut self, event: StandbyEvent) {
        use StandbyEvent::{HandOver, PeerLost, Yield};
        self.truth.standby_lost_primary |= matches!(event, PeerLost | Yield | HandOver);
        self.truth.standby_sound &= !matches!(event, StandbyEvent::Failed(_));
        let Some(session) = &mut self.standby.session else { return };
        let state = session.machine.state().clone();
        let Some(event) = self.plant.map_or(Some(event.clone()), |b| b.standby_event(event, &state)) else {
            return;
        };
        let mut actions = Vec::new();
        let stepped = session.machine.step(event, &mut actions);
        let staged = session.staged.back().map_or(session.machine.committed(), |s| s.epoch);
        if let Some(plant) = self.plant {
            plant.standby_actions(&session.machine, staged, &mut actions);
        }
        for action in actions {
            match action {
                StandbyAction::Apply(epoch) => {
                    session.todo.push_back(Todo::ApplyMemory(epoch));
                    session.todo.extend((0..DISKS).map(|disk| Todo::ApplyDisk(disk, epoch)));
                }
                other => session.todo.push_back(Todo::Act(other)),
            }
        }
        if *session.machine.state() != state {
            note!(self, "    the standby is {:?}", session.machine.state());
        }
        if let Err(violation) = stepped {
            self.broken(Promise::NothingSilent, format!("the standby's machine says: {violation}"));
        }
    }

    pub(crate) fn standby_carries_out(&mut self) -> bool {
        let Some(session) = &mut self.standby.session else { return false };
        let Some(todo) = session.todo.pop_front() else {
            let over = matches!(session.machine.state(), StandbyState::Ended(_));
            if over {
                self.leave_session();
            }
            return over;
        };
        let id = session.id;
        note!(self, "    the standby does {todo:?}");
        match todo {
            Todo::Act(StandbyAction::Commit(epoch)) => self.commit(epoch),
            Todo::Act(StandbyAction::Acknowledge(epoch)) => self.acknowledge(epoch),
            Todo::Act(StandbyAction::SendEndAck) => self.tell(Message::EndAck),
            Todo::Act(StandbyAction::SendFailed(_)) => self.tell(Message::Failed),
            Todo::Act(StandbyAction::Claim) => {
                session.heartbeat = self.plant == Some(Break::HeartbeatGoesOn);
                self.arbiter.ask(id, Side::Standby);
            }
            Todo::Act(StandbyAction::TakeOver(epoch)) => self.take_over(epoch),
            Todo::Act(StandbyAction::Apply(_)) => {}
            Todo::ApplyMemory(epoch) => self.apply_memory(epoch),
            Todo::ApplyDisk(disk, epoch) => self.apply_disk(disk, epoch),
        }
        true
    }

    fn tell(&mut self, message: Message) {
        if let Some(link) = &mut self.link {
            link.send(Lane::Up, message);
        }
    }

    fn leave_session(&mut self) {
        if let Some(link) = &mut self.link {
            link.close(Side::Standby, usize::MAX);
        }
        self.standby.session = None;
    }

    pub(crate) fn crash_standby(&mut self, keep: usize) -> bool {
        if !std::mem::replace(&mut self.standby.up, false) {
            return false;
        }
        self.truth.standby_sound &= self.standby.session.is_none();
        self.standby.session = None;
        self.arbiter.forget(Side::Standby);
        if let Some(link) = &mut self.link {
            link.close(Side::Standby, keep);
        }
        true
    }

    fn commit(&mut self, epoch: Epoch) {
        let Some(session) = &mut self.standby.session else { return };
        if std::mem::take(&mut session.fail_commit) {
            return self.fails();
        }
        let memory = session.staged.iter().any(|s| s.epoch == epoch);
        let disks = session.disks.iter().all(|d| d.barrier >= epoch);
        if !memory || !disks || epoch != self.truth.committed.next() {
            self.broken(
                Promise::OneEpochNumber,
                format!("epoch {epoch} is committed without its memory or one of its disks"),
            );
        }
        self.truth.committed = epoch;
    }

    fn acknowledge(&mut self, epoch: Epoch) {
        if self.standby.session.as_ref().is_none_or(|s| s.failed) {
            return;
        }
        if epoch > self.truth.committed {
            self.broken(Promise::OutputCommit, format!("epoch {epoch} is acknowledged and not committed"));
        }
        self.tell(Message::Acknowledge(epoch));
    }

    /// Something failed while the machine's word was carried out: the machine hears of it at once.
    fn fails(&mut self) {
        let Some(session) = &mut self.standby.session else { return };
        session.failed = true;
        self.step_standby(StandbyEvent::Failed(String::new()));
    }

    fn take_over(&mut self, epoch: Epoch) {
        let Some(session) = &self.standby.session else { return };
        let (id, handover) = (session.id, session.machine.is_handover());
        // What is later is discarded; what is committed was applied before, because the machine said so.
        let (image, truth) = (session.image, self.truth.snapshot(epoch));
        let (ended, lost) = (self.truth.standby_told, self.truth.standby_lost_primary);
        if ended || !lost {
            self.broken(Promise::AnEndingHasAReason, "promoted although the primary was not lost");
        }
        if self.arbiter.owner(id) != Some(Side::Standby) {
            self.broken(Promise::OneOwner, "promoted without the arbiter's word");
        }
        if self.primary.speaks() && self.truth.primary_owns {
            self.broken(Promise::OneOwner, "promoted while the primary's guest speaks");
        }
        if epoch != self.truth.committed || self.truth.half_applied {
            let committed = self.truth.committed;
            self.broken(
                Promise::AllOrNothing,
                format!(
                    "resumed epoch {epoch} (half applied: {}), committed is {committed}",
                    self.truth.half_applied
                ),
            );
        }
        if !self.truth.standby_sound {
            self.broken(Promise::NothingSilent, "promoted although something has failed here");
        }
        self.compare(epoch, Promise::AllOrNothing, "when it was resumed");
        if self.truth.heard > truth.device {
            let heard = self.truth.heard;
            self.broken(
                Promise::OutputCommit,
                format!("the world has heard frame {heard}, the guest resumes at {}", truth.device),
            );
        }
        self.standby.active = Some(image);
        self.takeovers += 1;
        if handover {
            self.handovers += 1;
            self.tell(Message::TookOver);
        }
        self.leave_session();
    }
}
