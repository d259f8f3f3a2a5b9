//! The standby: follows a primary, and takes over when it is lost.
//!
//! ```text
//!  wait for a primary ─► session: agree ─► follow { stage · commit · acknowledge · apply } ─┬─► ended: wait again
//!                                                                                           └─► active: run the guest
//! ```
//! [`aventine_protocol::Standby`] decides; this file carries out. One thread runs the loop, the guest plugin and the
//! epoch verbs; beside it the receiver ([`crate::receiver`]), the control channel's reader, the heartbeat, the
//! arbiter's thread and the disks' own.

mod start;

use crate::EngineError;
use crate::arbiter::{Answer, Claimant, Record};
use crate::audit::{self, Checker, Divergence};
use crate::control::Inbox;
use crate::door::{Door, refuse};
use crate::link::{Heartbeat, STEP, spawn_control_reader};
use crate::memory::GuestMemory;
use crate::parts::{During, Maker, Parts, PluginFailure, Report, Reports};
use crate::primary::Tools;
use crate::receiver::{Buffers, Checkpoint, Image, ReceiveError};
use crate::roles::{Kept, Stage, TakenOver};
use crate::silence::{Heard, Silence};
use crate::wire::{ControlTx, FrameTx};
use aventine_api::{Disk, Epoch, ErrorCode, GuestEvent, Link, LinkAbort, PluginError, SessionId, Side};
use aventine_protocol::{
    Base, EndReason, Message, Standby, StandbyAction, StandbyEvent, StandbyState, differences,
};
use start::{Threads, await_hello, prepare, spawn_receiver};
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How long one wait for a primary or for the guest's own events lasts.
const TICK: Duration = Duration::from_millis(50);

/// What a session's loop waits for, besides the time.
enum Event {
    Message(Message),
    ControlLost(PluginError),
    Checkpoint(Checkpoint),
    Copied(u64),
    ReceiverEnded(ReceiveError),
    Plugin(Report),
    Arbiter(Answer),
}

/// How following ended.
pub(crate) enum Followed {
    /// The operator wants the standby to end.
    Stopped,
    /// The guest runs here.
    TookOver(Box<TakenOver>),
}

/// Why an epoch could not be applied, or must not be used.
enum ApplyError {
    Plugin(PluginFailure),
    Diverged(Divergence),
}

impl From<PluginFailure> for ApplyError {
    fn from(failure: PluginFailure) -> ApplyError {
        ApplyError::Plugin(failure)
    }
}

/// How a session ended.
enum SessionEnd {
    /// Wait for the next primary.
    Over(String),
    Stopped,
    TookOver(Takeover),
}

/// What is left of a session that has taken over.
struct Takeover {
    base: Base,
    control: ControlTx,
    abort: Arc<dyn LinkAbort>,
    link: Box<dyn Link>,
}

/// Follows one primary after the other until it has taken a guest over. `kept` is the memory of a guest that was handed
/// over from here, `detail` why this side is the standby, for a person.
pub(crate) fn follow(
    stage: &Stage<'_>,
    record: &mut Record,
    door: &mut Door,
    mut kept: Option<Kept>,
    detail: &str,
) -> Result<Followed, EngineError> {
    let Stage { config, inbox, .. } = *stage;
    let mut detail = detail.to_owned();
    loop {
        let (to_loop, events) = channel();
        let plugins = to_loop.clone();
        let reports = Reports::to(move |r| drop(plugins.send(Event::Plugin(r))));
        let maker = stage.maker(Side::Standby, &reports);
        let mut parts = maker.parts()?;
        let tools = Tools::make(&maker, &mut parts)?;
        let routes: Vec<_> = parts.disks.iter().filter_map(|(_, d)| d.route()).collect();
        let listener = door.listener(&config.transport.id, &routes)?;
        inbox.say("waiting", &detail);
        let link = loop {
            if inbox.wants_end() {
                return Ok(Followed::Stopped);
            }
            if let Some(link) = listener.accept(TICK).during(&config.transport.id, "waiting for a primary")? {
                break link;
            }
        };
        info!(peer = link.peer(), "a primary has connected");
        let setting = Setting { maker: &maker, signature: &tools.signature, inbox };
        let session = Session::agree(&setting, link, &mut parts, (to_loop, events), &mut kept)?;
        let end = match session {
            Ok(session) => session.follow(&mut parts, inbox)?,
            Err(why) => SessionEnd::Over(why),
        };
        match end {
            SessionEnd::Over(why) => detail = why,
            SessionEnd::Stopped => return Ok(Followed::Stopped),
            SessionEnd::TookOver(Takeover { base, control, abort, link }) => {
                // What an older session left open here is settled by this takeover.
                if let Err(error) = record.end() {
                    warn!(%error, "an older session still counts as open");
                }
                let taken = TakenOver { parts, reports, tools, base, control, abort, link };
                return Ok(Followed::TookOver(Box::new(taken)));
            }
        }
        info!(detail, "waiting for a primary again");
    }
}

/// What a session begins with.
struct Setting<'a> {
    maker: &'a Maker<'a>,
    signature: &'a [(String, String)],
    inbox: &'a Inbox,
}

/// One session with one primary.
struct Session {
    /// Dropped first: they use the others.
    threads: Threads,
    machine: Standby,
    control: ControlTx,
    link: Box<dyn Link>,
    /// `None` once this side takes the primary for lost.
    heartbeat: Option<Heartbeat>,
    silence: Silence,
    session: SessionId,
    arbiter: Claimant,
    image: Arc<Mutex<Image>>,
    /// Compares the image with the primary's memory, if that is configured.
    audit: Option<Checker>,
    /// Staged and not applied, in order.
    checkpoints: VecDeque<Checkpoint>,
    /// Device state of the last applied epoch.
    state: Vec<u8>,
    /// The first channel that ended, after how many signs of life, and why: soon silence must confirm that the primary
    /// is lost.
    channel_lost: Option<(u64, String)>,
    /// Whether the network buffers know that the primary may be lost.
    suspected: bool,
    failure: Option<String>,
    activation: Option<Duration>,
    times: Times,
    events: Receiver<Event>,
}

/// Where the time of epochs went, since it was last reported.
#[derive(Default)]
struct Times {
    receive: Vec<Duration>,
    disks: Vec<Duration>,
    apply: Vec<Duration>,
}

impl Session {
    /// The handshake, up to `Ready`. The inner error is the session's alone: the standby waits for the next primary.
    fn agree(
        setting: &Setting<'_>,
        mut link: Box<dyn Link>,
        parts: &mut Parts,
        (to_loop, events): (Sender<Event>, Receiver<Event>),
        kept: &mut Option<Kept>,
    ) -> Result<Result<Session, String>, EngineError> {
        let Setting { maker, signature, inbox } = *setting;
        let config = maker.config;
        let (heard, abort) = (Heard::new(Instant::now()), link.aborter());
        let (tx, rx) = match link.open("control", None, STEP) {
            Ok(channel) => channel,
            Err(e) => return Ok(Err(e.chain())),
        };
        let control = ControlTx::new(FrameTx::new(tx, Arc::new(AtomicU64::new(0))));
        let (messages, ended) = (to_loop.clone(), to_loop.clone());
        spawn_control_reader(
            rx,
            heard.clone(),
            move |_, m| messages.send(Event::Message(m)).is_ok(),
            move |e| drop(ended.send(Event::ControlLost(e))),
        );
        let hello = match await_hello(&events) {
            Ok(hello) => hello,
            Err(why) => return Ok(Err(why)),
        };
        let wrong = differences(&hello.signature, signature);
        if !wrong.is_empty() {
            return Ok(Err(refuse(
                &control,
                format!("the two hosts are set up differently:\n  {}", wrong.join("\n  ")),
            )));
        }
        info!(session = %hello.session, "agreed with the primary");
        inbox.say("copying", "");
        let offered = hello.base;
        let base = kept.take().filter(|kept| Some(kept.base) == offered);
        if let Err(e) = control.send(Epoch::COPY, &Message::Accept { base: base.is_some() }) {
            return Ok(Err(e.chain()));
        }
        let heartbeat = Heartbeat::start(control.clone(), config.heartbeat);
        let ready = prepare(maker, link.as_mut(), parts);
        let pages = match ready {
            Ok(pages) => pages,
            Err(failure) => return Ok(Err(refuse(&control, failure.chain()))),
        };
        let codec = maker.codec()?;
        let verdicts = to_loop.clone();
        let answer = move |answer| drop(verdicts.send(Event::Arbiter(answer)));
        let arbiter = Claimant::start(maker.arbiter()?, Side::Standby, answer);
        // SAFETY: the session and its receiver's thread, which use it, end before the parts are dropped.
        let mut memory = unsafe { GuestMemory::of(parts.guest.as_ref()) };
        if let Some(kept) = base {
            // SAFETY: used in this call only, and the guest outlives it.
            let old = unsafe { GuestMemory::of(kept.guest.as_ref()) };
            if let Err(failure) = memory.take(&old).during("guest", "taking over its old memory") {
                return Ok(Err(refuse(&control, failure.chain())));
            }
        }
        let audit_limit = config.audit.map_or(0, |every| audit::slice_pages(memory.pages(), every));
        let before = inbox.shared.lock().unwrap_or_else(PoisonError::into_inner).status.audit.clone();
        let audit = config.audit.map(|every| Checker::new(every, memory.pages(), before));
        let image = Arc::new(Mutex::new(Image { memory, codec }));
        let buffers = Buffers::new(config.staging);
        let receiver = spawn_receiver(pages, &image, &buffers, audit_limit, to_loop);
        let session = Session {
            machine: Standby::new(parts.disks.len()),
            silence: Silence::new(heard, config.heartbeat, config.detection, Instant::now()),
            session: hello.session,
            arbiter,
            threads: Threads { abort, buffers, receiver: Some(receiver) },
            control,
            link,
            heartbeat: Some(heartbeat),
            image,
            audit,
            checkpoints: VecDeque::new(),
            state: Vec::new(),
            channel_lost: None,
            suspected: false,
            failure: None,
            activation: None,
            times: Times::default(),
            events,
        };
        match session.control.send(Epoch::COPY, &Message::Ready) {
            Ok(()) => Ok(Ok(session)),
            Err(e) => Ok(Err(e.chain())),
        }
    }

    /// Follows the primary until the session is over or the guest runs here.
    fn follow(mut self, parts: &mut Parts, inbox: &Inbox) -> Result<SessionEnd, EngineError> {
        let Some(ending) = self.until_end(parts, inbox)? else { return Ok(SessionEnd::Stopped) };
        if *self.machine.state() != StandbyState::Active {
            return Ok(SessionEnd::Over(self.failure.take().unwrap_or(ending)));
        }
        let Session { threads, session, machine, control, link, .. } = self;
        let abort = Arc::clone(&threads.abort);
        // They use the guest's memory as a standby's.
        drop(threads);
        let base = Base { session, epoch: machine.committed() };
        Ok(SessionEnd::TookOver(Takeover { base, control, abort, link }))
    }

    /// Answers why the session is over; `None`: the operator ended it.
    fn until_end(&mut self, parts: &mut Parts, inbox: &Inbox) -> Result<Option<String>, EngineError> {
        loop {
            let mut event = self.events.recv_timeout(self.silence.next_tick()).ok();
            while let Some(e) = event {
                self.take(e, parts, inbox)?;
                event = self.events.try_recv().ok();
            }
            self.watch(parts)?;
            self.report(inbox, parts);
            if *self.machine.state() == StandbyState::Following && inbox.wants_end() {
                // The primary hears why, and goes on alone without asking the arbiter.
                self.step(StandbyEvent::Failed("the standby was stopped".to_owned()), parts)?;
                return Ok(None);
            }
            match self.machine.state() {
                StandbyState::Active => return Ok(Some(String::new())),
                StandbyState::Ended(reason) => return Ok(Some(ending(reason.as_ref()))),
                StandbyState::Following | StandbyState::Resolving => {}
            }
        }
    }

    fn take(&mut self, event: Event, parts: &mut Parts, inbox: &Inbox) -> Result<(), EngineError> {
        match self.translate(event, inbox) {
            Some(event) => self.step(event, parts),
            None => Ok(()),
        }
    }

    /// Turns what happened into an event of the machine, if it is one.
    fn translate(&mut self, event: Event, inbox: &Inbox) -> Option<StandbyEvent> {
        match event {
            Event::Message(Message::End(reason)) => Some(StandbyEvent::End(reason)),
            Event::Message(Message::Yield) => Some(StandbyEvent::Yield),
            Event::Message(Message::HandOver) => Some(StandbyEvent::HandOver),
            Event::Message(other) => Some(StandbyEvent::Failed(format!("the primary sent {other:?}"))),
            Event::Checkpoint(checkpoint) => {
                let (epoch, armed) = (checkpoint.epoch, checkpoint.armed);
                self.times.receive.push(checkpoint.receiving);
                self.checkpoints.push_back(checkpoint);
                Some(StandbyEvent::PagesStaged { epoch, armed })
            }
            Event::Plugin(Report::DiskStaged(disk, epoch)) => Some(StandbyEvent::DiskStaged { disk, epoch }),
            Event::ControlLost(e) => self.lost_or_failed("the control channel", &e),
            Event::ReceiverEnded(e) => self.lost_or_failed("the pages channel", &e.into_plugin_error()),
            Event::Plugin(Report::Failed(id, e)) => self.lost_or_failed(&format!("plugin {id}"), &e),
            Event::Plugin(Report::EarlyEpoch) => None,
            Event::Copied(bytes) => {
                let mut measured = inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
                measured.status.copied_bytes += bytes;
                None
            }
            Event::Arbiter(Answer::Verdict(_, verdict)) => Some(StandbyEvent::Verdict(verdict)),
            Event::Arbiter(Answer::Probed(_)) => None,
        }
    }

    /// The end of a stream proves nothing: silence on control decides whether the primary is lost, and if it is not,
    /// the session cannot go on without the channel.
    fn lost_or_failed(&mut self, who: &str, error: &PluginError) -> Option<StandbyEvent> {
        let why = format!("{who}: {}", error.chain());
        if error.code() == ErrorCode::PeerLost {
            self.channel_lost.get_or_insert((self.silence.signs(), why));
            return None;
        }
        Some(StandbyEvent::Failed(why))
    }

    /// What time alone brings.
    fn watch(&mut self, parts: &mut Parts) -> Result<(), EngineError> {
        if *self.machine.state() != StandbyState::Following {
            return Ok(());
        }
        let lost = self.silence.tick(Instant::now());
        self.suspect(self.machine.is_armed() && self.silence.suspects(), parts);
        if lost {
            warn!("nothing was heard from the primary for the detection time");
            return self.step(StandbyEvent::PeerLost, parts);
        }
        // Only signs of life tell a broken channel from a dead primary: time passes for a starved standby as well.
        if let Some((signs, why)) = &self.channel_lost
            && self.silence.signs() > signs + self.silence.proof()
        {
            let why = format!("a channel from the primary ended while the primary lives: {why}");
            return self.step(StandbyEvent::Failed(why), parts);
        }
        match parts.guest.poll() {
            Ok(Some(GuestEvent::Lost { how })) => {
                self.step(StandbyEvent::Failed(format!("the waiting guest's process is gone: {how}")), parts)
            }
            Ok(_) => Ok(()),
            Err(e) => self.step(StandbyEvent::Failed(e.chain()), parts),
        }
    }

    /// Has the network buffers prepare for a takeover, or no longer.
    fn suspect(&mut self, suspected: bool, parts: &mut Parts) {
        if suspected != self.suspected {
            self.suspected = suspected;
            debug!(suspected, "the primary may be lost");
            parts.networks.iter_mut().for_each(|(_, network)| network.suspect(suspected));
        }
    }

    /// Steps the machine and carries out what it says.
    fn step(&mut self, event: StandbyEvent, parts: &mut Parts) -> Result<(), EngineError> {
        let before = self.machine.state().clone();
        let mut actions = Vec::new();
        if let Err(violation) = self.machine.step(event, &mut actions) {
            warn!(%violation, "the primary broke the protocol");
        }
        for action in actions {
            self.carry_out(action, parts)?;
        }
        if *self.machine.state() != before {
            info!(state = ?self.machine.state(), committed = self.machine.committed().0, "standby");
        }
        Ok(())
    }

    fn carry_out(&mut self, action: StandbyAction, parts: &mut Parts) -> Result<(), EngineError> {
        match action {
            StandbyAction::Commit(epoch) => {
                let staged = self.checkpoints.iter().find(|c| c.epoch == epoch);
                self.times.disks.extend(staged.map(|c| c.staged_at.elapsed()));
                for (id, disk) in &mut parts.disks {
                    if let Err(failure) = disk.commit(epoch).during(id, "committing") {
                        return self.fail(&failure, parts);
                    }
                }
            }
            StandbyAction::Acknowledge(epoch) => {
                // After a failed commit there is nothing to acknowledge.
                if self.failure.is_none() {
                    self.send(epoch, &Message::Acknowledge);
                }
            }
            StandbyAction::Apply(epoch) => match self.apply(epoch, parts) {
                Ok(took) => self.times.apply.extend(took),
                Err(ApplyError::Plugin(failure)) => return self.fail(&failure, parts),
                Err(ApplyError::Diverged(found)) => {
                    self.send(found.epoch, &Message::Diverged { total: found.total, pages: found.pages() });
                    return self.step(StandbyEvent::Failed(found.to_string()), parts);
                }
            },
            StandbyAction::SendEndAck => self.send(self.machine.committed(), &Message::EndAck),
            StandbyAction::SendFailed(why) => {
                warn!(why, "the standby cannot go on");
                self.send(self.machine.committed(), &Message::Failed(why.clone()));
                self.failure.get_or_insert(why);
            }
            StandbyAction::Claim => {
                self.heartbeat = None;
                self.arbiter.claim(self.session);
            }
            StandbyAction::TakeOver(epoch) => self.take_over(epoch, parts)?,
        }
        Ok(())
    }

    fn fail(&mut self, failure: &PluginFailure, parts: &mut Parts) -> Result<(), EngineError> {
        let why = failure.chain();
        self.step(StandbyEvent::Failed(why), parts)
    }

    /// Brings a committed epoch into memory and the disks, and compares what the audit has of it. A failure leaves a half
    /// applied image, and the machine then never promotes it. Answers how long it took, if anything was done.
    fn apply(&mut self, epoch: Epoch, parts: &mut Parts) -> Result<Option<Duration>, ApplyError> {
        if self.failure.is_some() {
            return Ok(None);
        }
        let begun = Instant::now();
        while self.checkpoints.front().is_some_and(|c| c.epoch <= epoch) {
            let Some(mut checkpoint) = self.checkpoints.pop_front() else { break };
            {
                let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
                checkpoint
                    .pages
                    .iter()
                    .try_for_each(|p| image.decode(p))
                    .during("codec", "applying an epoch")?;
                if let Some(audit) = &mut self.audit {
                    audit
                        .check(checkpoint.epoch, &checkpoint.audit, &image.memory)
                        .map_err(ApplyError::Diverged)?;
                }
            }
            self.state = std::mem::take(&mut checkpoint.state);
            self.threads.buffers.recycle(checkpoint);
        }
        for (id, disk) in &mut parts.disks {
            disk.apply(epoch).during(id, "applying an epoch")?;
        }
        Ok(Some(begun.elapsed()))
    }

    /// The guest runs here from `epoch` on: disks and networks first, so that it finds them ready.
    fn take_over(&mut self, epoch: Epoch, parts: &mut Parts) -> Result<(), EngineError> {
        let start = Instant::now();
        let handover = self.machine.is_handover();
        if !handover {
            self.threads.abort.abort();
        }
        self.checkpoints.clear();
        for (id, disk) in &mut parts.disks {
            Disk::activate(disk.as_mut(), epoch).during(id, "taking over")?;
        }
        for (id, network) in &mut parts.networks {
            network.activate(epoch).during(id, "taking over")?;
        }
        parts.guest.activate(&self.state).during("guest", "taking over")?;
        info!(epoch = epoch.0, took = ?start.elapsed(), "the guest runs here now");
        self.activation = Some(start.elapsed());
        if handover {
            self.send(epoch, &Message::TookOver);
        }
        Ok(())
    }

    fn send(&self, epoch: Epoch, message: &Message) {
        if let Err(error) = self.control.send(epoch, message) {
            warn!(error = error.chain(), "a message did not reach the primary");
        }
    }

    fn report(&mut self, inbox: &Inbox, parts: &Parts) {
        let mut measured = inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.times.receive.drain(..).for_each(|t| measured.receive.push_time(t));
        self.times.disks.drain(..).for_each(|t| measured.disks.push_time(t));
        self.times.apply.drain(..).for_each(|t| measured.apply.push_time(t));
        let status = &mut measured.status;
        status.state = match self.machine.state() {
            StandbyState::Following if self.machine.is_armed() => "armed",
            StandbyState::Following => "copying",
            StandbyState::Resolving => "resolving",
            StandbyState::Active => "active",
            StandbyState::Ended(_) => "ended",
        }
        .to_owned();
        status.peer = self.link.peer();
        status.committed = self.machine.committed().0;
        status.guest_pid = parts.guest.process();
        status.audit = self.audit.as_ref().map(Checker::status);
        status.activation_us = self.activation.map_or(0, |t| t.as_micros() as u64);
    }
}

/// Why a session is over, for a person.
fn ending(reason: Option<&EndReason>) -> String {
    match reason {
        Some(EndReason::Stopped) => "the primary ended protection; the guest runs on there".to_owned(),
        Some(EndReason::GuestShutDown) => "the guest has shut down".to_owned(),
        Some(EndReason::LocalError(why)) => format!("the primary could not go on replicating: {why}"),
        None => "the primary is lost, and the guest is not this side's".to_owned(),
    }
}
