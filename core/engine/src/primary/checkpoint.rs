//! One checkpoint, from pause to hand-over, and what becomes known of it later.

use super::{LOOK, Loop, Pending};
use crate::EngineError;
use crate::parts::{During, PluginFailure};
use crate::sender::Sent;
use crate::staging::SenderGone;
use aventine_api::{Epoch, EpochStats, LONGEST_EPOCH, PageBitmap};
use aventine_protocol::{PrimaryEvent, PrimaryState};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A checkpoint as it comes out of the pause.
struct Captured {
    epoch: Epoch,
    armed: bool,
    pages: u64,
    state: Vec<u8>,
    times: Times,
}

/// The parts of a pause.
#[derive(Clone, Copy, Default)]
struct Times {
    scan: Duration,
    copy: Duration,
    room: Duration,
    device: Duration,
}

/// Why a pause yielded no checkpoint.
enum Failure {
    Plugin(PluginFailure),
    Link,
    Engine(EngineError),
    /// There is nothing to make it for any more, or not yet: what led to that has been carried out.
    Pointless,
}

impl From<PluginFailure> for Failure {
    fn from(failure: PluginFailure) -> Failure {
        Failure::Plugin(failure)
    }
}

impl From<SenderGone> for Failure {
    fn from(SenderGone: SenderGone) -> Failure {
        Failure::Link
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::Engine(error)
    }
}

impl Loop<'_> {
    /// The epoch loop's heart: one checkpoint, from pause to hand-over.
    pub(super) fn epoch(&mut self) -> Result<(), EngineError> {
        self.parts.disks.iter().for_each(|(_, d)| d.pausing());
        self.parts.networks.iter_mut().for_each(|(_, n)| n.pausing());
        self.paused_at = Instant::now();
        let captured = self.checkpoint();
        // After the final epoch of a handover nothing may happen here any more, nor once the guest is the other side's.
        let resumed = match captured.is_ok() && self.machine.is_final() || self.is_elsewhere() {
            true => Ok(()),
            false => self.parts.guest.resume().during("guest", "resuming"),
        };
        let pause = self.paused_at.elapsed();
        match captured.and_then(|c| resumed.map(|()| c).map_err(Failure::Plugin)) {
            Ok(captured) => self.give_to_sender(captured, pause),
            Err(Failure::Plugin(failure)) => self.local_error(&failure),
            Err(Failure::Link) => self.step(PrimaryEvent::LinkLost),
            Err(Failure::Engine(error)) => Err(error),
            Err(Failure::Pointless) => Ok(()),
        }
    }

    /// The pause, without the resume: seals every buffer and captures memory and device state.
    fn checkpoint(&mut self) -> Result<Captured, Failure> {
        self.parts.guest.pause().during("guest", "pausing")?;
        let mut times = Times { room: self.await_link()?, ..Times::default() };
        let (epoch, armed) = self.machine.seal().map_err(|_| Failure::Link)?;
        for (id, network) in &mut self.parts.networks {
            network.seal(epoch).during(id, "sealing")?;
        }
        for (id, disk) in &mut self.parts.disks {
            disk.seal(epoch).during(id, "sealing")?;
        }
        let start = Instant::now();
        self.parts.guest.start_state().during("guest", "saving its device state")?;
        let scan = Instant::now();
        self.parts.dirty(&mut self.pipe.dirty)?;
        let copy = Instant::now();
        let audited = self.audit.as_mut().and_then(|a| a.seal(epoch));
        audited.into_iter().for_each(|sealed| self.pipe.staging.audit(sealed));
        let (pages, full) = self.capture(epoch)?;
        let finish = Instant::now();
        let mut state = self.pipe.states.try_recv().unwrap_or_default();
        self.parts.guest.finish_state(&mut state).during("guest", "saving its device state")?;
        times.scan = copy - scan;
        times.copy = (finish - copy).saturating_sub(full);
        times.room += full;
        times.device = (scan - start) + finish.elapsed();
        Ok(Captured { epoch, armed, pages, state, times })
    }

    /// Captures all that is dirty; answers the number of pages, and how long staging was full.
    fn capture(&mut self, epoch: Epoch) -> Result<(u64, Duration), Failure> {
        let (mut pages, mut full, mut from) = (0, Duration::ZERO, 0);
        loop {
            let taken = self.pipe.staging.capture(epoch, &self.pipe.dirty, from, &self.memory)?;
            pages += taken.pages;
            let Some(rest) = taken.rest else { return Ok((pages, full)) };
            from = rest;
            let since = Instant::now();
            loop {
                let room = self.pipe.staging.await_room(LOOK)?;
                self.attend()?;
                if room {
                    break;
                }
            }
            full += since.elapsed();
        }
    }

    /// The guest is paused because its epoch must end: waits until the link and the buffers can take it; answers how long.
    fn await_link(&mut self) -> Result<Duration, Failure> {
        let since = Instant::now();
        loop {
            if self.machine.may_seal() && (self.early || self.link_has_room()) {
                return Ok(since.elapsed());
            }
            // A disk that asks for time may take long, and the guest need not wait for it.
            if self.unreleased.is_some() {
                return Err(Failure::Pointless);
            }
            if let Ok(event) = self.events.recv_timeout(LOOK) {
                self.take(event)?;
            }
            self.attend()?;
        }
    }

    /// What must go on while the loop waits with the guest paused.
    fn attend(&mut self) -> Result<(), Failure> {
        while self.may_go_on()
            && let Ok(event) = self.events.try_recv()
        {
            self.take(event)?;
        }
        if self.may_go_on() {
            self.watch_link()?;
            self.release_due()?;
        }
        self.report_due();
        if self.may_go_on() { Ok(()) } else { Err(Failure::Pointless) }
    }

    fn is_elsewhere(&self) -> bool {
        use PrimaryState::{Fenced, HandedOver, Yielded};
        matches!(self.machine.state(), Fenced | HandedOver | Yielded)
    }

    fn may_go_on(&self) -> bool {
        use PrimaryState::{Arming, HandingOver, Protected};
        matches!(self.machine.state(), Arming | Protected | HandingOver)
    }

    /// The guest runs again: gives the checkpoint to the sender and plans the next.
    fn give_to_sender(&mut self, captured: Captured, pause: Duration) -> Result<(), EngineError> {
        let Captured { epoch, armed, pages, state, times } = captured;
        let clean = self.pipe.spare.pop().unwrap_or_else(|| PageBitmap::new(self.memory.pages()));
        let dirty = std::mem::replace(&mut self.pipe.dirty, clean);
        let (sealed_at, resumed_at) = (self.paused_at, self.paused_at + pause);
        self.pipe.pending.push_back(Pending { epoch, sealed_at, resumed_at, sent_at: None, dirty });
        if self.pipe.staging.finish(epoch, armed, state).is_err() {
            return self.step(PrimaryEvent::LinkLost);
        }
        self.audit.iter_mut().for_each(|a| a.begin(epoch));
        self.floor.iter_mut().for_each(|f| f.due = true);
        self.last =
            EpochStats { pause, dirty_pages: pages, in_flight: self.machine.in_flight(), ..self.last };
        let interval = self.policy.interval(&self.last).min(LONGEST_EPOCH);
        // A pause that began a little late does not shift the ones after it.
        let late = self.paused_at.saturating_duration_since(self.next_epoch);
        let early = self.early || self.must_end;
        let planned = if early || late > interval { self.paused_at } else { self.next_epoch };
        (self.early, self.must_end) = (false, false);
        self.next_epoch = planned + interval;
        self.ask_again = Some(Instant::now());
        let mut measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
        measured.pause.push_time(pause);
        measured.scan.push_time(times.scan);
        measured.copy.push_time(times.copy);
        measured.room.push_time(times.room);
        measured.device.push_time(times.device);
        measured.dirty.push(pages);
        Ok(())
    }

    /// Takes notice of what the transport has taken.
    pub(super) fn learn_sent(&mut self) {
        while let Ok(Sent { epoch, begun, encode, send, done }) = self.pipe.sent.try_recv() {
            self.pipe.taken = epoch;
            let mut measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
            measured.encode.push_time(encode);
            measured.send.push_time(send);
            if let Some(pending) = self.pipe.pending.iter_mut().find(|p| p.epoch == epoch) {
                pending.sent_at = Some(done);
                measured.queue.push_time(begun.saturating_duration_since(pending.resumed_at));
            }
        }
    }

    /// The standby holds all epochs up to this one.
    pub(super) fn acknowledged(&mut self, epoch: Epoch) {
        self.learn_sent();
        self.audit.iter_mut().for_each(|a| a.acknowledged(epoch));
        while self.pipe.pending.front().is_some_and(|p| p.epoch <= epoch) {
            let Some(mut done) = self.pipe.pending.pop_front() else { break };
            let commit = done.sealed_at.elapsed();
            self.last.commit = commit;
            let mut measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
            measured.commit.push_time(commit);
            done.sent_at.iter().for_each(|at| measured.standby.push_time(at.elapsed()));
            drop(measured);
            done.dirty.clear();
            self.pipe.spare.push(done.dirty);
        }
    }
}
