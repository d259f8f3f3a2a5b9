//! The primary's host: the engine's part around the machine.

mod output;

use crate::breaks::Break;
use crate::guest::{Buffer, Guest, Mode, PAGES, State};
use crate::network::{Arrival, Lane, Message};
use crate::promise::Promise;
use crate::schedule::Choice;
use crate::world::{World, note};
use aventine_api::{Disengage, Epoch, Side, Verdict};
use aventine_protocol::{EndReason, Primary, PrimaryAction, PrimaryEvent, PrimaryState};
use std::collections::VecDeque;

/// What the engine does next.
#[derive(Clone, Debug)]
pub(crate) enum Todo {
    Act(PrimaryAction),
    AbortLink,
    EndRecord,
    Exit,
}

pub(crate) struct PrimarySession {
    pub(crate) id: usize,
    pub(crate) machine: Primary,
    pub(crate) todo: VecDeque<Todo>,
    /// The epoch that a write to a disk belongs to.
    open: Epoch,
    /// Whether the link was given up.
    aborted: bool,
    /// Whether it still says that it is alive.
    pub(crate) heartbeat: bool,
    /// Whether what it reads from the standby made no sense: it reads no more.
    pub(crate) deaf: bool,
}

pub(crate) struct PrimaryHost {
    /// Whether the program runs.
    up: bool,
    /// The session that a restart must settle, on disk.
    record: Option<usize>,
    pub(crate) session: Option<PrimarySession>,
    pub(crate) guest: Option<Guest>,
    pub(crate) buffer: Buffer,
    /// The guest as it was when it last ran: what a restart finds on its disks.
    last: State,
    /// The guest has ended by itself: nothing starts it again.
    ended: bool,
    /// The guest stays paused after the last epoch of a handover.
    pub(crate) frozen: bool,
    steps: u64,
}

impl PrimaryHost {
    pub(crate) fn new() -> PrimaryHost {
        PrimaryHost {
            up: true,
            record: None,
            session: None,
            guest: Some(Guest { state: State::default(), dirty: [false; PAGES] }),
            buffer: Buffer::new(),
            last: State::default(),
            ended: false,
            frozen: false,
            steps: 0,
        }
    }

    pub(crate) fn speaks(&self) -> bool {
        self.up && self.guest.is_some() && !self.frozen && self.buffer.mode == Mode::Passing
    }

    pub(crate) fn wants_session(&self) -> bool {
        let free = self
            .session
            .as_ref()
            .is_none_or(|s| *s.machine.state() == PrimaryState::Alone && s.todo.is_empty());
        self.up && self.guest.is_some() && free
    }

    /// Whether no guest runs here and none is about to.
    pub(crate) fn is_idle(&self) -> bool {
        self.session.is_none() && self.guest.is_none() && !self.ended
    }

    /// The guest runs on the other host, which is the primary from now on; answers whether this one is up.
    pub(crate) fn resumed_elsewhere(&mut self, state: State) -> bool {
        let guest = Some(Guest { state, dirty: [true; PAGES] });
        let next = PrimaryHost { guest, last: state, steps: self.steps, ..PrimaryHost::new() };
        std::mem::replace(self, next).up
    }

    /// The guest is gone here, not by its own will, and nobody has settled who owns it.
    pub(crate) fn lost_the_guest(&self) -> bool {
        self.guest.is_none() && !self.ended && self.record.is_some()
    }

    fn stop_guest(&mut self) {
        self.frozen = false;
        if let Some(guest) = self.guest.take() {
            self.last = guest.state;
        }
    }
}

impl World {
    /// Whether the loop can take another event.
    pub(crate) fn primary_listens(&self) -> bool {
        let free = |s: &PrimarySession| s.todo.is_empty();
        self.primary.up && self.primary.session.as_ref().is_some_and(free)
    }

    /// Nothing was heard for the detection time, or so the clock says: this side falls silent as well, so that a standby
    /// that can still hear it asks the arbiter, too.
    pub(crate) fn primary_hears_nothing(&mut self) -> bool {
        let listens = self.primary_listens();
        let goes_on = self.is(Break::HeartbeatGoesOn);
        let Some(session) = self.primary.session.as_mut().filter(|s| listens && s.heartbeat && !s.aborted)
        else {
            return false;
        };
        session.heartbeat = goes_on;
        self.primary_event(PrimaryEvent::LinkLost)
    }

    pub(crate) fn primary_begins(&mut self, id: usize) {
        let Some(guest) = &mut self.primary.guest else { return };
        guest.dirty = [false; PAGES];
        let State { memory, disks, .. } = guest.state;
        self.primary.buffer = Buffer::new();
        self.primary.record = Some(id);
        self.primary.session = Some(PrimarySession {
            id,
            machine: Primary::new(self.setup.depth),
            todo: VecDeque::new(),
            open: Epoch::COPY,
            aborted: false,
            heartbeat: true,
            deaf: false,
        });
        self.send(Lane::Pages, Message::CopyMemory(memory));
        for (n, disk) in disks.into_iter().enumerate() {
            self.send(Lane::Disk(n), Message::CopyDisk(disk));
        }
    }

    fn send(&mut self, lane: Lane, message: Message) {
        if let Some(link) = &mut self.link {
            link.send(lane, message);
        }
    }

    pub(crate) fn copied(&mut self) -> bool {
        let copying = |s: &PrimarySession| *s.machine.state() == PrimaryState::Copying;
        self.primary_listens()
            && self.primary.session.as_ref().is_some_and(copying)
            && self.primary_event(PrimaryEvent::Copied)
    }

    pub(crate) fn primary_receives(&mut self, arrival: Arrival) {
        let message = match arrival {
            Arrival::Gap(_) if !self.is(Break::GapUnnoticed) => {
                note!(self, "    a message before this one is missing");
                if let Some(session) = &mut self.primary.session {
                    session.deaf = true;
                }
                self.primary_event(PrimaryEvent::LinkLost);
                return;
            }
            Arrival::Gap(message) | Arrival::Message(message) => message,
        };
        note!(self, "    {message:?}");
        let event = match message {
            Message::Acknowledge(epoch) => {
                self.truth.acknowledged = self.truth.acknowledged.max(epoch);
                PrimaryEvent::Acknowledged(epoch)
            }
            Message::EndAck => {
                self.truth.renounced = true;
                PrimaryEvent::EndAcknowledged
            }
            Message::TookOver => PrimaryEvent::TakenOver,
            _ => {
                self.truth.renounced = true;
                PrimaryEvent::StandbyRenounced
            }
        };
        self.primary_event(event);
    }

    /// Steps the machine; what it says is carried out later, one thing after the other. `false` when the loop is busy.
    pub(crate) fn primary_event(&mut self, event: PrimaryEvent) -> bool {
        if !self.primary_listens() {
            return false;
        }
        let Some(session) = &mut self.primary.session else { return false };
        let resolving = *session.machine.state() == PrimaryState::Resolving;
        if self.plant == Some(Break::RenunciationUnheardWhileResolving)
            && resolving
            && matches!(event, PrimaryEvent::StandbyRenounced | PrimaryEvent::EndAcknowledged)
        {
            return true;
        }
        let Some(event) = self.plant.map_or(Some(event.clone()), |b| b.primary_event(event)) else {
            return true;
        };
        let before = session.machine.state().clone();
        let mut actions = Vec::new();
        let stepped = session.machine.step(event, &mut actions);
        if let Some(plant) = self.plant {
            plant.primary_actions(&session.machine, &mut actions);
        }
        session.todo.extend(actions.into_iter().map(Todo::Act));
        let state = session.machine.state().clone();
        if state != before {
            use PrimaryState::{Alone, Ended, Fenced, HandedOver};
            let then: &[Todo] = match state {
                Alone => &[Todo::AbortLink, Todo::EndRecord],
                Ended => &[Todo::AbortLink, Todo::EndRecord, Todo::Exit],
                Fenced => &[Todo::AbortLink, Todo::Exit],
                HandedOver => &[Todo::Exit], // the last message arrives first
                _ => &[],
            };
            session.todo.extend(then.iter().cloned());
            note!(self, "    the primary is {state:?}");
        }
        if let Err(violation) = stepped {
            // Sequence numbers let nothing but a broken peer get this far.
            self.broken(Promise::NothingSilent, format!("the primary's machine says: {violation}"));
        }
        true
    }

    pub(crate) fn primary_carries_out(&mut self) -> bool {
        let Some(session) = self.primary.session.as_mut().filter(|_| self.primary.up) else { return false };
        let Some(todo) = session.todo.pop_front() else { return false };
        let id = session.id;
        note!(self, "    the primary does {todo:?}");
        match todo {
            Todo::Act(PrimaryAction::Engage) => self.primary.buffer.mode = Mode::Holding,
            Todo::Act(PrimaryAction::Release(epoch)) => self.release(epoch),
            Todo::Act(PrimaryAction::SendEnd(reason)) => self.send(Lane::Down, Message::End(reason)),
            Todo::Act(PrimaryAction::SendYield) => {
                if self.truth.end == Some(EndReason::GuestShutDown) {
                    self.broken(
                        Promise::AnEndingHasAReason,
                        "the standby is told to take a guest over that has shut down",
                    );
                }
                self.send(Lane::Down, Message::Yield);
            }
            Todo::Act(PrimaryAction::SendHandOver) => {
                if !self.primary.frozen {
                    self.broken(Promise::OneOwner, "a guest that runs is handed over");
                }
                self.send(Lane::Down, Message::HandOver);
            }
            Todo::Act(PrimaryAction::Claim) => self.arbiter.ask(id, Side::Primary),
            Todo::Act(PrimaryAction::Disengage(Disengage::Owner)) => self.goes_on_as_owner(id),
            Todo::Act(PrimaryAction::Disengage(Disengage::NotOwner)) => {
                self.primary.buffer = Buffer { mode: Mode::Silent, ..Buffer::new() };
                self.truth.unheard.clear();
            }
            Todo::Act(PrimaryAction::KillGuest) => {
                if self.truth.primary_owns || self.arbiter.owner(id) != Some(Side::Standby) {
                    self.broken(Promise::NeverFrozenNeverMuted, "a guest that this side owns was ended");
                }
                self.primary.stop_guest();
            }
            Todo::AbortLink => {
                session.aborted = true;
                if let Some(link) = &mut self.link {
                    link.close(Side::Primary, usize::MAX);
                }
            }
            Todo::EndRecord => self.primary.record = None,
            Todo::Exit => {
                let owned = *session.machine.state() == PrimaryState::Ended;
                if !owned && (self.primary.guest.is_some() || self.primary.buffer.mode != Mode::Silent) {
                    self.broken(
                        Promise::OneOwner,
                        "a guest that the standby may own is left running or audible",
                    );
                }
                if let Some(link) = &mut self.link {
                    link.close(Side::Primary, usize::MAX);
                }
                self.primary_is_gone();
            }
        }
        true
    }

    /// Protection ends: an operator, a failure, or the guest wants it.
    pub(crate) fn end(&mut self, choice: Choice) -> bool {
        let reason = match choice {
            Choice::Stop => EndReason::Stopped,
            Choice::ShutDown => EndReason::GuestShutDown,
            _ => EndReason::LocalError(String::new()),
        };
        let paused = self.primary.frozen && choice == Choice::ShutDown;
        if !self.primary_listens() || self.primary.guest.is_none() || paused {
            return false;
        }
        // Later reasons are not told any more.
        use PrimaryState::{Arming, Copying, HandingOver, Protected};
        let told =
            |s: &PrimarySession| matches!(s.machine.state(), Copying | Arming | Protected | HandingOver);
        if self.primary.session.as_ref().is_some_and(told) {
            self.truth.end = Some(reason.clone());
        }
        if reason == EndReason::GuestShutDown {
            self.primary.stop_guest();
            self.primary.ended = true;
        }
        self.primary_event(PrimaryEvent::End(reason))
    }

    pub(crate) fn hand_over(&mut self) -> bool {
        let protected = |s: &PrimarySession| *s.machine.state() == PrimaryState::Protected;
        self.primary_listens()
            && self.primary.session.as_ref().is_some_and(protected)
            && self.primary_event(PrimaryEvent::HandOver)
    }

    pub(crate) fn guest_lost(&mut self) -> bool {
        if !self.primary_listens() || self.primary.guest.is_none() {
            return false;
        }
        self.primary.stop_guest();
        self.primary_event(PrimaryEvent::GuestLost)
    }

    pub(crate) fn crash_primary(&mut self, keep: usize) -> bool {
        if !self.primary.up {
            return false;
        }
        if let Some(link) = &mut self.link {
            link.close(Side::Primary, keep);
        }
        self.primary_is_gone();
        true
    }

    fn primary_is_gone(&mut self) {
        self.primary.up = false;
        self.primary.stop_guest();
        self.primary.session = None;
        self.arbiter.forget(Side::Primary);
        self.primary.buffer = Buffer::new();
        self.truth.unheard.clear();
    }

    /// The program starts again: it settles the session that was open, and only then boots the guest from its disks.
    pub(crate) fn restart_primary(&mut self) -> bool {
        if self.primary.up || self.primary.ended {
            return false;
        }
        if let Some(session) = self.primary.record.filter(|_| !self.is(Break::RestartWithoutSettling)) {
            let away = self.arbiter.away[0];
            let verdict = if away { Verdict::Undecided } else { self.arbiter.hear(session, Side::Primary) };
            note!(self, "    session {session} is settled: {verdict:?}");
            if verdict != Verdict::Won {
                return true;
            }
            self.primary.record = None;
        }
        let last = self.sessions.checked_sub(1);
        let owns = self.truth.primary_owns
            || self.truth.renounced
            || last.is_some_and(|s| self.arbiter.owner(s) == Some(Side::Primary));
        if !owns || self.standby.active.is_some() {
            self.broken(Promise::OneOwner, "a restarted primary runs a guest that it may not own");
        }
        self.truth.primary_owns = true;
        self.primary.steps += 1;
        let state = State { device: self.primary.steps, disks: self.primary.last.disks, ..State::default() };
        self.primary.up = true;
        self.primary.guest = Some(Guest { state, dirty: [false; PAGES] });
        true
    }
}
