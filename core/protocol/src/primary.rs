//! The primary's state machine.
//!
//! ```text
//!             copied          ack(1)
//!  Copying ─────────► Arming ────────► Protected ──┬─ link lost, violation ─► Resolving ─┬─ won, renounced ─► Alone
//!     │                 │                          ├─ end asked ─► Ending ─ acked ──────────► Alone / Ended
//!     │ any loss        │ (the same ways out)      │                 └─ link lost ─► Resolving
//!     ▼                 ▼                          ├─ standby renounced ────────────────────► Alone
//!   Alone                                          ├─ guest lost ─► HandedOver
//!                                                  └─ handover ─► HandingOver ─ ack(final) ─► Yielded ─ taken ─► HandedOver
//!        Resolving ─ lost ─► Fenced                                  └─ (the same ways out) ─────┘
//! ```
//! Invariants:
//! - `Release(n)` is answered only to `Acknowledged(n)`, and n was sealed.
//! - A seal is *armed* when the network buffers were engaged before its epoch began to be held: they engage on the
//!   acknowledgement of epoch 1, so everything sent unheld before that is explained by epoch 2 at the latest. Until an
//!   armed seal was given out no standby may promote, and this side may go on without asking the arbiter.
//! - After that, `Disengage(Owner)` needs `Won`, or the standby's own word that it has disarmed itself. That word counts
//!   while the arbiter is being asked, too: an arbiter that waits for a person must not mute a guest that nobody contests.
//! - A handover is a seal after which the guest stays paused: once that epoch is acknowledged the standby is told to take
//!   over, and asks the arbiter as it would after a loss. Until it says that the guest runs there, this side can still
//!   lose it and ask as well, or take it back if the standby renounces.

use crate::{EndReason, Violation};
use aventine_api::{Disengage, Epoch, Verdict};

/// Where the primary stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    /// The initial copy runs; the guest is unprotected.
    Copying,
    /// The first checkpoint is on its way; the guest is unprotected.
    Arming,
    /// The standby can take over.
    Protected,
    /// The standby was told that protection ends; its answer is due.
    Ending(EndReason),
    /// The two sides have lost each other: the arbiter decides.
    Resolving,
    /// The final epoch of a planned handover is due or on its way; once it is sealed the guest stays paused.
    HandingOver,
    /// The standby holds the final epoch and was told to take over; the guest is paused here.
    Yielded,
    /// The guest runs on here, unprotected.
    Alone,
    /// The guest has ended here, and no standby may promote.
    Ended,
    /// The standby owns the guest.
    Fenced,
    /// The standby was told to take over: it has the guest, or nothing is left here that could run.
    HandedOver,
}

/// What happens to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// The initial copy is as complete as it gets while the guest runs.
    Copied,
    /// The standby has committed this epoch.
    Acknowledged(Epoch),
    /// The standby answered `End`.
    EndAcknowledged,
    /// The standby has disarmed itself for good.
    StandbyRenounced,
    /// A channel ended, or nothing was heard for the detection time. A side that hears nothing says nothing any more
    /// either, not even that it is alive: a standby that still hears it must come to ask the arbiter as well, for it may
    /// be the only one that can.
    LinkLost,
    /// Protection shall end, and why.
    End(EndReason),
    /// An operator wants the guest to run on the standby's host.
    HandOver,
    /// The standby says that the guest runs there now, after a handover.
    TakenOver,
    /// The guest's process is gone without a shutdown.
    GuestLost,
    /// The arbiter's answer to `Claim`; an arbiter that cannot be reached is `Undecided`.
    Verdict(Verdict),
}

/// What the engine must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryAction {
    /// Hold the guest's output from now on.
    Engage,
    /// Let the output of this epoch out.
    Release(Epoch),
    /// Tell the standby that protection ends.
    SendEnd(EndReason),
    /// Tell the standby to take over, because nothing is left here.
    SendYield,
    /// Tell the standby to take over, as planned.
    SendHandOver,
    /// Ask the arbiter, and report the verdict.
    Claim,
    /// End holding output and replicating writes.
    Disengage(Disengage),
    /// End the guest at once: it belongs to the other side.
    KillGuest,
}

/// The primary of one session.
#[derive(Clone, Debug)]
pub struct Primary {
    state: PrimaryState,
    depth: u32,
    sealed: Epoch,
    acknowledged: Epoch,
    engaged: bool,
    /// Whether an armed seal was given out: from then on the standby may own the guest one day.
    armed: bool,
    guest_ended: bool,
    /// The epoch after which the guest stays paused.
    last: Option<Epoch>,
}

impl Primary {
    /// A primary whose buffers can hold `depth` sealed epochs.
    pub fn new(depth: u32) -> Primary {
        Primary {
            state: PrimaryState::Copying,
            depth: depth.max(1),
            sealed: Epoch::COPY,
            acknowledged: Epoch::COPY,
            engaged: false,
            armed: false,
            guest_ended: false,
            last: None,
        }
    }

    /// The primary of a guest that was taken over: alone, with no session.
    pub fn alone() -> Primary {
        Primary { state: PrimaryState::Alone, ..Primary::new(1) }
    }

    /// Where it stands.
    pub fn state(&self) -> &PrimaryState {
        &self.state
    }

    /// The last sealed epoch.
    pub fn sealed(&self) -> Epoch {
        self.sealed
    }

    /// The last acknowledged epoch.
    pub fn acknowledged(&self) -> Epoch {
        self.acknowledged
    }

    /// Epochs sealed and not acknowledged.
    pub fn in_flight(&self) -> u32 {
        (self.sealed.0 - self.acknowledged.0) as u32
    }

    /// Whether an epoch may be sealed now. The first one travels alone.
    pub fn may_seal(&self) -> bool {
        match self.state {
            PrimaryState::Arming => self.sealed == Epoch::COPY,
            PrimaryState::Protected => self.in_flight() < self.depth,
            PrimaryState::HandingOver => self.last.is_none() && self.in_flight() < self.depth,
            _ => false,
        }
    }

    /// Whether the guest must not run on after the epoch sealed last: the standby may be about to run it.
    pub fn is_final(&self) -> bool {
        self.last.is_some()
    }

    /// Seals the open epoch: answers its number and whether it is armed.
    pub fn seal(&mut self) -> Result<(Epoch, bool), Violation> {
        if !self.may_seal() {
            return Err(Violation::Seal);
        }
        self.sealed = self.sealed.next();
        self.armed |= self.engaged;
        if self.state == PrimaryState::HandingOver {
            self.last = Some(self.sealed);
        }
        Ok((self.sealed, self.engaged))
    }

    /// Takes an event and appends what must be done to `out`. A violation has the effect of `LinkLost` as well.
    pub fn step(&mut self, event: PrimaryEvent, out: &mut Vec<PrimaryAction>) -> Result<(), Violation> {
        match event {
            PrimaryEvent::Copied => {
                if self.state == PrimaryState::Copying {
                    self.state = PrimaryState::Arming;
                }
            }
            PrimaryEvent::Acknowledged(epoch) => return self.acknowledge(epoch, out),
            PrimaryEvent::EndAcknowledged => {
                if matches!(self.state, PrimaryState::Ending(_) | PrimaryState::Resolving) {
                    self.go_on_alone(out);
                }
            }
            PrimaryEvent::StandbyRenounced => {
                if self.is_open() || self.state == PrimaryState::Resolving {
                    self.go_on_alone(out);
                }
            }
            PrimaryEvent::HandOver => {
                if self.state == PrimaryState::Protected {
                    self.state = PrimaryState::HandingOver;
                }
            }
            // Told only by a standby that was told to take over; it has won the arbiter, whatever this side still thinks.
            PrimaryEvent::TakenOver => {
                if self.last.is_some()
                    && matches!(self.state, PrimaryState::Yielded | PrimaryState::Resolving)
                {
                    out.push(PrimaryAction::Disengage(Disengage::NotOwner));
                    out.push(PrimaryAction::KillGuest);
                    self.state = PrimaryState::HandedOver;
                }
            }
            PrimaryEvent::LinkLost => self.link_lost(out),
            PrimaryEvent::End(reason) => self.end(reason, out),
            PrimaryEvent::GuestLost => self.guest_lost(out),
            PrimaryEvent::Verdict(verdict) => self.verdict(verdict, out),
        }
        Ok(())
    }

    /// Whether the standby is still being talked to.
    fn is_open(&self) -> bool {
        use PrimaryState::{Arming, Copying, Ending, HandingOver, Protected, Yielded};
        matches!(self.state, Copying | Arming | Protected | Ending(_) | HandingOver | Yielded)
    }

    fn acknowledge(&mut self, epoch: Epoch, out: &mut Vec<PrimaryAction>) -> Result<(), Violation> {
        if !self.is_open() {
            return Ok(()); // A late one: the arbiter decides by now, and it decides alone.
        }
        if epoch != self.acknowledged.next() || epoch > self.sealed {
            let violation = Violation::Acknowledgement {
                got: epoch,
                acknowledged: self.acknowledged,
                sealed: self.sealed,
            };
            self.link_lost(out);
            return Err(violation);
        }
        self.acknowledged = epoch;
        if self.state == PrimaryState::Arming {
            self.state = PrimaryState::Protected;
            self.engaged = true;
            out.push(PrimaryAction::Engage);
        }
        out.push(PrimaryAction::Release(epoch));
        if self.state == PrimaryState::HandingOver && self.last == Some(epoch) {
            self.state = PrimaryState::Yielded;
            out.push(PrimaryAction::SendHandOver);
        }
        Ok(())
    }

    fn link_lost(&mut self, out: &mut Vec<PrimaryAction>) {
        if !self.is_open() {
            return;
        }
        if self.armed {
            self.state = PrimaryState::Resolving;
            out.push(PrimaryAction::Claim);
        } else {
            self.go_on_alone(out);
        }
    }

    fn end(&mut self, reason: EndReason, out: &mut Vec<PrimaryAction>) {
        self.guest_ended |= reason == EndReason::GuestShutDown;
        match self.state {
            PrimaryState::Copying
            | PrimaryState::Arming
            | PrimaryState::Protected
            | PrimaryState::HandingOver => {
                out.push(PrimaryAction::SendEnd(reason.clone()));
                self.state = PrimaryState::Ending(reason);
            }
            PrimaryState::Alone if self.guest_ended => self.state = PrimaryState::Ended,
            _ => {}
        }
    }

    fn guest_lost(&mut self, out: &mut Vec<PrimaryAction>) {
        match self.state {
            // Nobody can continue the guest: let out what it said, and say so.
            PrimaryState::Alone => self.state = PrimaryState::Ended,
            _ if self.is_open() && !self.armed => {
                self.guest_ended = true;
                self.go_on_alone(out);
            }
            PrimaryState::Ending(_) => self.guest_ended = true,
            PrimaryState::Protected | PrimaryState::Arming | PrimaryState::HandingOver => {
                out.push(PrimaryAction::Disengage(Disengage::NotOwner));
                out.push(PrimaryAction::SendYield);
                self.state = PrimaryState::HandedOver;
            }
            PrimaryState::Resolving | PrimaryState::Yielded => {
                // The standby may win: it has the guest, this side has nothing.
                out.push(PrimaryAction::Disengage(Disengage::NotOwner));
                self.state = PrimaryState::HandedOver;
            }
            _ => {}
        }
    }

    fn verdict(&mut self, verdict: Verdict, out: &mut Vec<PrimaryAction>) {
        if self.state != PrimaryState::Resolving {
            return;
        }
        match verdict {
            Verdict::Won => self.go_on_alone(out),
            Verdict::Undecided => out.push(PrimaryAction::Claim),
            Verdict::Lost => {
                out.push(PrimaryAction::Disengage(Disengage::NotOwner));
                out.push(PrimaryAction::KillGuest);
                self.state = PrimaryState::Fenced;
            }
        }
    }

    fn go_on_alone(&mut self, out: &mut Vec<PrimaryAction>) {
        out.push(PrimaryAction::Disengage(Disengage::Owner));
        self.state = if self.guest_ended { PrimaryState::Ended } else { PrimaryState::Alone };
    }
}
