//! What is due in every turn beside the epochs: commands, the guest's own doings, the status.

use super::{AfterAlone, FloorRun, Loop};
use crate::EngineError;
use crate::audit::Auditor;
use crate::control::{Command, VerificationStatus};
use crate::parts::During;
use crate::stall::Progress;
use crate::stats::Samples;
use aventine_api::{DiskVerification, GuestEvent, PAGE_SIZE, PluginError};
use aventine_protocol::{EndReason, PrimaryEvent, PrimaryState};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

impl Loop<'_> {
    /// What is due in every turn.
    pub(super) fn housekeeping(&mut self) -> Result<(), EngineError> {
        while let Ok(command) = self.inbox.commands.try_recv() {
            self.command(command)?;
        }
        // A guest that is already known to be lost has nothing more to say.
        let event = if self.guest_lost.is_none() {
            self.parts.guest.poll().during("guest", "being watched")
        } else {
            Ok(None)
        };
        match event {
            Ok(Some(event)) => self.guest_event(event)?,
            Ok(None) => {}
            Err(failure) => self.local_error(&failure)?,
        }
        self.watch_link()?;
        self.floor_round()?;
        self.report_due();
        Ok(())
    }

    /// Finds out that the link is lost or comes to nothing.
    pub(super) fn watch_link(&mut self) -> Result<(), EngineError> {
        let open = self.link.heartbeat.is_some();
        if open && self.silence.tick(Instant::now()) {
            self.link_lost("nothing was heard for the detection time")?;
            // A standby that still hears this side must come to ask the arbiter as well.
            self.link.heartbeat = None;
        }
        let bytes = self.link.bulk.load(Ordering::Relaxed);
        let progress = Progress { acknowledged: self.machine.acknowledged(), bytes };
        if self.stall.tick(open && self.machine.in_flight() > 0, progress, Instant::now()) {
            self.link_lost("an epoch made no progress for ten detection times")?;
        }
        Ok(())
    }

    pub(super) fn guest_event(&mut self, event: GuestEvent) -> Result<(), EngineError> {
        match event {
            GuestEvent::ShutDown => self.step(PrimaryEvent::End(EndReason::GuestShutDown)),
            GuestEvent::Rebooted => {
                info!("the guest rebooted");
                Ok(())
            }
            GuestEvent::Panicked => {
                warn!("the guest's kernel panicked; its state stays replicated");
                Ok(())
            }
            GuestEvent::Lost { how } => {
                error!(how, "the guest's process is gone");
                self.detail(format!("the guest's process is gone: {how}"));
                self.guest_lost = Some(how);
                self.step(PrimaryEvent::GuestLost)
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) -> Result<(), EngineError> {
        match command {
            Command::Stop { reply } => {
                if self.is_alone() {
                    self.redial = None;
                    let _ = reply.send(Ok(()));
                    return Ok(());
                }
                self.stop_replies.push(reply);
                self.step(PrimaryEvent::End(EndReason::Stopped))
            }
            Command::HandOver { reply } => {
                self.hand_over_asked(reply);
                Ok(())
            }
            Command::Verify { repair, reply } => {
                let begun = self.verify(repair);
                self.report();
                let _ = reply.send(begun);
                Ok(())
            }
            Command::PowerDown | Command::Kill => {
                let kill = matches!(command, Command::Kill);
                self.after_alone = Some(if kill { AfterAlone::Kill } else { AfterAlone::PowerDown });
                if self.is_alone() {
                    return self.after_alone();
                }
                self.step(PrimaryEvent::End(EndReason::Stopped))
            }
            Command::Floor { rounds, reply } => {
                if *self.machine.state() == PrimaryState::Protected {
                    let left = rounds.clamp(1, 1000);
                    self.floor = Some(FloorRun { left, due: false, samples: Samples::default(), reply });
                } else {
                    let _ = reply.send(Err("the guest is not protected".to_owned()));
                }
                Ok(())
            }
        }
    }

    /// Has every disk compare its images; the reason why one does not.
    fn verify(&mut self, repair: bool) -> Result<(), String> {
        if *self.machine.state() != PrimaryState::Protected || self.link.records {
            return Err("the guest is not protected: there is no standby to compare with".to_owned());
        }
        if self.parts.disks.is_empty() {
            return Err("the guest has no disk that is replicated".to_owned());
        }
        let refused = self.parts.disks.iter_mut().filter_map(|(id, disk)| {
            let error = disk.verify(repair).err()?;
            Some(format!("{id}: {}", error.chain()))
        });
        let refused: Vec<_> = refused.collect();
        if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
    }

    fn verifications(&self) -> Vec<VerificationStatus> {
        let disks = self.parts.disks.iter().map(|(id, disk)| (id, disk.verification()));
        let status = |(id, found): (&String, DiskVerification)| {
            let DiskVerification { running, total, done: compared, differing, repaired } = found;
            VerificationStatus { disk: id.clone(), running, total, compared, differing, repaired }
        };
        disks.filter(|(_, found)| found.total > 0).map(status).collect()
    }

    /// A guest is paused for an arbiter only if that can be asked just now.
    fn hand_over_asked(&mut self, reply: Sender<Result<(), String>>) {
        let refused = match self.machine.state() {
            PrimaryState::Protected if self.waits_for_person => {
                "the arbiter waits for a person, and the guest would wait with it; stop protection, and start the guest \
                 on the other host"
            }
            PrimaryState::Protected => {
                self.handover_replies.push(reply);
                return self.arbiter.probe();
            }
            PrimaryState::HandingOver | PrimaryState::Yielded => "a handover is under way",
            _ => "the guest is not protected: there is no standby that could run it",
        };
        let _ = reply.send(Err(refused.to_owned()));
    }

    /// The arbiter can be asked, or why not.
    pub(super) fn hand_over(&mut self, probed: Result<(), PluginError>) -> Result<(), EngineError> {
        if let Err(error) = probed {
            self.answer_handover(&Err(format!("the arbiter cannot be asked: {}", error.chain())));
            return Ok(());
        }
        self.early = true;
        self.step(PrimaryEvent::HandOver)
    }

    pub(super) fn answer_handover(&mut self, answer: &Result<(), String>) {
        self.handover_replies.drain(..).for_each(|r| drop(r.send(answer.clone())));
    }

    pub(super) fn is_alone(&self) -> bool {
        *self.machine.state() == PrimaryState::Alone
    }

    /// One round of the floor, half-way between two epochs, so that the guest has run before it as it does before an
    /// epoch.
    pub(super) fn floor_round(&mut self) -> Result<(), EngineError> {
        let half_way = self.paused_at + self.next_epoch.saturating_duration_since(self.paused_at) / 2;
        let Some(floor) = &mut self.floor else { return Ok(()) };
        if !floor.due || Instant::now() < half_way {
            return Ok(());
        }
        let mut state = Vec::new();
        let start = Instant::now();
        let guest = &mut self.parts.guest;
        let timed =
            guest.pause().and_then(|()| guest.start_state()).and_then(|()| guest.finish_state(&mut state));
        let resumed = guest.resume();
        floor.samples.push_time(start.elapsed());
        (floor.left, floor.due) = (floor.left - 1, false);
        timed.and(resumed).during("guest", "being timed")?;
        if floor.left == 0 {
            let _ = floor.reply.send(Ok(std::mem::take(&mut floor.samples).quantiles()));
            self.floor = None;
        }
        Ok(())
    }

    pub(super) fn detail(&self, text: String) {
        warn!("{text}");
        self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner).status.detail = text;
    }

    /// Keeps the status fresh.
    pub(super) fn report_due(&mut self) {
        if self.reported.elapsed() >= Duration::from_millis(100) {
            self.report();
        }
    }

    pub(super) fn report(&mut self) {
        self.reported = Instant::now();
        let copied = self.pipe.copy.as_ref().map(|c| {
            let disks = self.parts.disks.iter().map(|(_, d)| d.progress());
            let memory = (c.pages_sent * PAGE_SIZE as u64, c.pages_known * PAGE_SIZE as u64);
            disks.fold(memory, |(done, total), p| (done + p.done, total + p.total))
        });
        let verifications = self.verifications();
        let networks = self.parts.networks.iter().map(|(_, n)| n.stats());
        let (held, dropped, uncopied) = networks
            .fold((0, 0, 0), |(h, d, u), s| (h + s.held_bytes, d + s.dropped_frames, u + s.uncopied_frames));
        let mut measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let status = &mut measured.status;
        status.state = match self.machine.state() {
            PrimaryState::Protected if self.link.records => "recording",
            state => state_name(state),
        }
        .to_owned();
        status.peer.clone_from(&self.link.peer);
        status.guest_pid = self.parts.guest.process();
        status.sealed = self.machine.sealed().0;
        status.committed = self.machine.acknowledged().0;
        if let Some((done, total)) = copied {
            (status.copied_bytes, status.copy_total_bytes) = (done, total);
        }
        status.bytes_sent = self.link.sent.load(Ordering::Relaxed) + self.link.bulk.load(Ordering::Relaxed);
        status.verifications = verifications;
        status.held_bytes = held;
        status.audit = self.audit.as_ref().map(Auditor::status);
        if dropped > status.dropped_frames {
            let frames = dropped - status.dropped_frames;
            warn!(frames, "a network buffer or its uplink lost frames");
            status.detail =
                format!("frames-dropped: a network buffer or its uplink lost {frames} frames of the guest");
        }
        status.dropped_frames = dropped;
        status.uncopied_frames = uncopied;
    }
}

pub(super) fn state_name(state: &PrimaryState) -> &'static str {
    match state {
        PrimaryState::Copying => "copying",
        PrimaryState::Arming => "arming",
        PrimaryState::Protected => "protected",
        PrimaryState::HandingOver | PrimaryState::Yielded => "handing-over",
        PrimaryState::Ending(_) => "ending",
        PrimaryState::Resolving => "resolving",
        PrimaryState::Alone => "unprotected",
        PrimaryState::Ended => "ended",
        PrimaryState::Fenced => "fenced",
        PrimaryState::HandedOver => "handed-over",
    }
}
