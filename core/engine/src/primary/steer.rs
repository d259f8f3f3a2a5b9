//! What happens becomes an event of the machine; what the machine answers is carried out.

use super::operate::state_name;
use super::rejoin::FIRST_DELAY;
use super::{AfterAlone, Event, Loop};
use crate::EngineError;
use crate::arbiter::Answer;
use crate::audit::Divergence;
use crate::parts::{During, Parts, PluginFailure, Report};
use aventine_api::{Disengage, Epoch, ErrorCode, GuestEvent};
use aventine_protocol::{EndReason, Message, PrimaryAction, PrimaryEvent, PrimaryState};
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

impl Loop<'_> {
    /// Turns what happened into an event of the machine.
    pub(super) fn take(&mut self, event: Event) -> Result<(), EngineError> {
        match event {
            // What a link says after it was given up no longer matters.
            Event::Message(number, ..) | Event::ChannelLost(number, _) | Event::PagesLost(number, _)
                if number != self.link.number =>
            {
                Ok(())
            }
            Event::Message(_, epoch, Message::Acknowledge) => {
                self.step(PrimaryEvent::Acknowledged(epoch))?;
                // Dirty bits are forgotten only for what the machine took for acknowledged.
                self.acknowledged(self.machine.acknowledged());
                Ok(())
            }
            Event::Message(_, _, Message::EndAck) => self.step(PrimaryEvent::EndAcknowledged),
            Event::Message(_, _, Message::TookOver) => self.step(PrimaryEvent::TakenOver),
            Event::Message(_, _, Message::Failed(why)) => {
                self.detail(format!("the standby failed: {why}"));
                self.standby_failed();
                self.step(PrimaryEvent::StandbyRenounced)
            }
            Event::Message(_, epoch, Message::Diverged { total, pages }) if self.audit.is_some() => {
                let found = Divergence::new(epoch, total, &pages, &self.memory);
                error!("{found}");
                self.audit.iter_mut().for_each(|a| a.diverged(&found));
                Ok(())
            }
            Event::Message(_, _, other) => {
                self.detail(format!("the standby sent {other:?}, which has no place here"));
                self.step(PrimaryEvent::LinkLost)
            }
            Event::ChannelLost(_, e) => self.link_lost(&e.chain()),
            // A standby that stands down lets go of these channels at once. Whether it does is said on the control channel.
            Event::PagesLost(..) if self.is_ending() => Ok(()),
            Event::Plugin(Report::Failed(_, e)) if e.code() == ErrorCode::PeerLost && self.is_ending() => {
                Ok(())
            }
            Event::PagesLost(_, e) => self.link_lost(&e.chain()),
            Event::Plugin(Report::EarlyEpoch) => {
                self.early = true;
                Ok(())
            }
            Event::Plugin(Report::Failed(_, e)) if e.code() == ErrorCode::PeerLost => {
                self.link_lost(&e.chain())
            }
            Event::Plugin(Report::Failed(id, source)) => {
                self.local_error(&PluginFailure { id, doing: "replicating", source })
            }
            Event::Plugin(Report::DiskStaged(..)) => Ok(()),
            // A verdict on an earlier session says nothing about this one.
            Event::Arbiter(Answer::Verdict(session, _)) if session != self.link.session => Ok(()),
            Event::Arbiter(Answer::Verdict(_, verdict)) => self.step(PrimaryEvent::Verdict(verdict)),
            Event::Arbiter(Answer::Probed(probed)) => self.hand_over(probed),
            Event::Linked(link) => {
                self.linked(link);
                Ok(())
            }
        }
    }

    fn is_ending(&self) -> bool {
        matches!(self.machine.state(), PrimaryState::Ending(_))
    }

    /// Steps the machine and carries out what it says.
    pub(super) fn step(&mut self, event: PrimaryEvent) -> Result<(), EngineError> {
        let before = self.machine.state().clone();
        let mut actions = Vec::new();
        if let Err(violation) = self.machine.step(event, &mut actions) {
            self.detail(violation.to_string());
            self.link.heartbeat = None;
        }
        for action in actions {
            self.carry_out(action)?;
        }
        if *self.machine.state() != before {
            self.entered()?;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, action: PrimaryAction) -> Result<(), EngineError> {
        match action {
            PrimaryAction::Engage => {
                let engage =
                    self.parts.networks.iter_mut().map(|(id, n)| n.engage().during(id, "starting to hold"));
                let engaged = engage.collect();
                return self.or_local_error(engaged);
            }
            PrimaryAction::Release(epoch) => {
                self.unreleased = Some(epoch);
                return self.release_due();
            }
            PrimaryAction::SendEnd(reason) => self.tell(&Message::End(reason)),
            PrimaryAction::SendYield => self.tell(&Message::Yield),
            PrimaryAction::SendHandOver => self.tell(&Message::HandOver),
            PrimaryAction::Claim => self.arbiter.claim(self.link.session),
            PrimaryAction::Disengage(why) => {
                self.unreleased = None;
                if let Err(failure) = self.disengage(why) {
                    self.detail(failure.chain());
                }
            }
            PrimaryAction::KillGuest => self.parts.guest.kill().during("guest", "being ended")?,
        }
        Ok(())
    }

    /// Lets output go that may go by now.
    pub(super) fn release_due(&mut self) -> Result<(), EngineError> {
        let Some(epoch) = self.unreleased else { return Ok(()) };
        // The guest may run elsewhere by now: the arbiter's verdict lets all go, or nothing.
        if *self.machine.state() == PrimaryState::Resolving {
            return Ok(());
        }
        loop {
            match self.release(epoch) {
                // Nothing is left for later where the guest goes on elsewhere.
                Ok(false) if *self.machine.state() == PrimaryState::Yielded => {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(false) => return Ok(()),
                released => {
                    self.unreleased = None;
                    return self.or_local_error(released.map(drop));
                }
            }
        }
    }

    /// `false`: a disk asks for time.
    fn release(&mut self, epoch: Epoch) -> Result<bool, PluginFailure> {
        // Disks first: what the guest has flushed is on stable storage before the world sees what it says next.
        for (id, disk) in &mut self.parts.disks {
            match disk.release(epoch) {
                Err(error) if error.code() == ErrorCode::TimedOut => return Ok(false),
                released => released.during(id, "releasing")?,
            }
        }
        let mut networks = self.parts.networks.iter_mut();
        networks.try_for_each(|(id, network)| network.release(epoch).during(id, "releasing output"))?;
        Ok(true)
    }

    /// Every buffer is disengaged, even when one fails: what this side owns must talk again, what it does not own
    /// must be silent.
    pub(super) fn disengage(&mut self, why: Disengage) -> Result<(), PluginFailure> {
        let Parts { networks, disks, .. } = &mut self.parts;
        let networks = networks.iter_mut().map(|(id, n)| n.disengage(why).during(id, "disengaging"));
        let disks = disks.iter_mut().map(|(id, d)| d.disengage(why).during(id, "disengaging"));
        // An owner's disks first, as for a release; a loser is silent before anything else.
        let results: Vec<_> = match why {
            Disengage::Owner => disks.chain(networks).collect(),
            Disengage::NotOwner => networks.chain(disks).collect(),
        };
        results.into_iter().collect()
    }

    /// Once, after each change of the machine's state.
    pub(super) fn entered(&mut self) -> Result<(), EngineError> {
        let state = self.machine.state().clone();
        info!(state = state_name(&state), "primary");
        if !matches!(state, PrimaryState::Copying) {
            self.pipe.copy = None;
        }
        match state {
            PrimaryState::Alone | PrimaryState::Ended | PrimaryState::Fenced => {
                self.link.abort.abort();
                self.link.heartbeat = None;
                self.floor = None;
                self.pipe.pending.drain(..).for_each(|p| self.pipe.dirty.merge(&p.dirty));
                if state != PrimaryState::Fenced {
                    self.record.end()?;
                }
                self.stop_replies.drain(..).for_each(|r| drop(r.send(Ok(()))));
                self.handover_failed();
                if state == PrimaryState::Alone {
                    // After a handover that failed it is still paused.
                    self.parts.guest.resume().during("guest", "resuming")?;
                    warn!("the guest runs on unprotected");
                    self.redial.into_iter().for_each(|delay| self.dialer.dial(delay));
                    self.after_alone()?;
                }
            }
            PrimaryState::Protected => {
                self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner).status.detail.clear();
                self.protected_at = Some(Instant::now());
            }
            PrimaryState::Ending(_) => self.redial = None,
            PrimaryState::HandingOver => self.floor = None,
            PrimaryState::HandedOver => {
                self.link.heartbeat = None;
                self.answer_handover(&Ok(()));
            }
            _ => {}
        }
        self.report();
        Ok(())
    }

    fn handover_failed(&mut self) {
        let detail = {
            let measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
            measured.status.detail.clone()
        };
        let owner = if *self.machine.state() == PrimaryState::Fenced {
            "the other side owns the guest, and did not say whether it runs"
        } else {
            "the guest runs on here"
        };
        self.answer_handover(&Err(format!("{owner}: {detail}")));
    }

    pub(super) fn after_alone(&mut self) -> Result<(), EngineError> {
        match self.after_alone {
            Some(_) if self.parts.guest.outlives() => {}
            Some(AfterAlone::PowerDown) => {
                self.parts.guest.power_down().during("guest", "being asked to shut down")?;
            }
            Some(AfterAlone::Kill) => {
                self.parts.guest.kill().during("guest", "being ended")?;
                self.step(PrimaryEvent::End(EndReason::GuestShutDown))?;
            }
            None => {}
        }
        Ok(())
    }

    pub(super) fn link_lost(&mut self, why: &str) -> Result<(), EngineError> {
        if self.link.heartbeat.is_some() {
            self.detail(format!("the standby is lost: {why}"));
            self.redial = self.redial.map(|_| FIRST_DELAY);
        }
        self.step(PrimaryEvent::LinkLost)
    }

    /// A failed plugin ends protection, never the guest.
    pub(super) fn or_local_error(&mut self, result: Result<(), PluginFailure>) -> Result<(), EngineError> {
        result.or_else(|failure| self.local_error(&failure))
    }

    /// This side can no longer replicate: the guest runs on here, the standby stands down.
    pub(super) fn local_error(&mut self, failure: &PluginFailure) -> Result<(), EngineError> {
        // A guest that is gone makes whatever is asked of it fail; how it went decides what follows. It may have panicked
        // before that.
        while let Ok(Some(event)) = self.parts.guest.poll() {
            let gone = matches!(event, GuestEvent::Lost { .. } | GuestEvent::ShutDown);
            self.guest_event(event)?;
            if gone {
                return Ok(());
            }
        }
        let text = failure.chain();
        if failure.source.code() == ErrorCode::PeerLost && failure.id != "guest" {
            return self.link_lost(&text);
        }
        self.detail(text.clone());
        self.step(PrimaryEvent::End(EndReason::LocalError(text)))
    }

    pub(super) fn tell(&self, message: &Message) {
        if let Err(error) = self.link.control.send(self.machine.sealed(), message) {
            // The reader notices the same loss, and the machine acts on that.
            warn!(error = error.chain(), "a message did not reach the standby");
        }
    }

    /// Gives the standby the time to read the last message.
    pub(super) fn await_link_end(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if matches!(event, Event::ChannelLost(..)) {
                return;
            }
        }
    }
}
