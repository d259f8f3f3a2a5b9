//! How a primary comes to its loop: with a guest that it starts, or with one that this host has taken over.

use super::{Copy, Event, Left, Loop, Pipe, rejoin, replicate};
use crate::arbiter::{Claimant, Record};
use crate::audit::Auditor;
use crate::link::{self, Dialer, PrimaryLink, Terms};
use crate::memory::GuestMemory;
use crate::parts::{During, Maker, Parts, PluginFailure, Report, Reports};
use crate::roles::{Stage, TakenOver};
use crate::silence::Silence;
use crate::stall::Stall;
use crate::{End, EngineError};
use aventine_api::{Arbiter, EpochPolicy, EpochStats, Side, Transport};
use aventine_protocol::{Base, Primary, PrimaryState};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// The plugins of a primary besides the guest and its buffers. A standby has them made before it follows anybody: after a
/// takeover nothing may fail that needs them.
pub(crate) struct Tools {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) arbiter: Box<dyn Arbiter>,
    pub(crate) policy: Box<dyn EpochPolicy>,
    /// What must be the same on both hosts.
    pub(crate) signature: Vec<(String, String)>,
}

impl Tools {
    pub(crate) fn make(maker: &Maker<'_>, parts: &mut Parts) -> Result<Tools, PluginFailure> {
        Ok(Tools {
            transport: maker.transport()?,
            arbiter: maker.arbiter()?,
            policy: maker.policy()?,
            signature: parts.signature(maker.config)?,
        })
    }
}

/// Protects a guest that is started here, until it ends or the other side has it.
pub(crate) fn begin(stage: &Stage<'_>, record: &mut Record) -> Result<Left, EngineError> {
    let Stage { config, state_dir, inbox } = *stage;
    let (to_loop, events) = channel();
    let reports = Reports::to(into(&to_loop));
    let maker = stage.maker(Side::Primary, &reports);
    record.settle(maker.arbiter()?.as_mut())?;
    let mut parts = maker.parts()?;
    let mut tools = Tools::make(&maker, &mut parts)?;
    let Some(link) = link::connect(config, tools.transport.as_mut(), inbox)? else {
        return Ok(Left::Ended(End::Stopped));
    };
    let gives_up = || inbox.wants_end();
    let terms = Terms {
        config,
        signature: &tools.signature,
        base: None,
        to_loop: &to_loop,
        events: &events,
        gives_up: &gives_up,
    };
    let Some(mut link) = link::agree(&terms, link, 0, &parts)? else {
        return Ok(Left::Ended(End::Stopped));
    };
    replicate(&mut parts, &mut link)?;
    parts.start(state_dir)?;
    if !link::await_ready(&terms, 0)? {
        return Ok(Left::Ended(End::Stopped));
    }
    record.begin(link.primary.session)?;
    inbox.say("copying", "");
    // SAFETY: `memory` and `parts.guest` live in the same `Loop`, whose fields drop in order: memory first.
    let memory = unsafe { GuestMemory::of(parts.guest.as_ref()) };
    let copy = Copy::begin(&mut parts, memory.pages())?;
    let start = Start {
        machine: Primary::new(parts.depth()),
        pipe: Pipe::start(config, copy, maker.codec()?, link.pages, 0, &to_loop),
        link: link.primary,
        base: None,
        memory,
        parts,
    };
    let mut epochs = Loop::new(stage, &maker, record, (&to_loop, &events), tools, start);
    epochs.report();
    epochs.parts.guest.resume().during("guest", "starting to run")?;
    epochs.run()
}

/// Goes on with a guest that was taken over: alone at first, and protected again once a standby is found.
pub(crate) fn go_on(stage: &Stage<'_>, record: &mut Record, taken: TakenOver) -> Result<Left, EngineError> {
    let (to_loop, events) = channel();
    let TakenOver { parts, reports, tools, base, control, abort, link } = taken;
    reports.redirect(into(&to_loop));
    let maker = stage.maker(Side::Primary, &reports);
    // SAFETY: as in `begin`.
    let memory = unsafe { GuestMemory::of(parts.guest.as_ref()) };
    let start = Start {
        machine: Primary::alone(),
        pipe: Pipe::idle(memory.pages()),
        link: PrimaryLink::ended(base.session, control, abort, link),
        base: Some(base),
        memory,
        parts,
    };
    let mut epochs = Loop::new(stage, &maker, record, (&to_loop, &events), tools, start);
    epochs.entered()?;
    epochs.run()
}

fn into(to_loop: &Sender<Event>) -> impl Fn(Report) + Send + 'static {
    let to_loop = to_loop.clone();
    // A loop that has ended needs no more news.
    move |report| drop(to_loop.send(Event::Plugin(report)))
}

/// What differs between the two.
struct Start {
    memory: GuestMemory,
    parts: Parts,
    machine: Primary,
    pipe: Pipe,
    link: PrimaryLink,
    base: Option<Base>,
}

impl<'a> Loop<'a> {
    fn new(
        stage: &Stage<'a>,
        maker: &'a Maker<'a>,
        record: &'a mut Record,
        (to_loop, events): (&'a Sender<Event>, &'a Receiver<Event>),
        tools: Tools,
        start: Start,
    ) -> Loop<'a> {
        let Stage { config, inbox, .. } = *stage;
        let Tools { transport, arbiter, policy, signature } = tools;
        let Start { memory, parts, machine, pipe, link, base } = start;
        // SAFETY: the audit's thread ends when the loop's first field is dropped, before the guest.
        let audit = config.audit.map(|n| Auditor::start(unsafe { GuestMemory::of(parts.guest.as_ref()) }, n));
        let now = Instant::now();
        let verdicts = to_loop.clone();
        let answer = move |answer| drop(verdicts.send(Event::Arbiter(answer)));
        Loop {
            silence: Silence::new(link.heard.clone(), config.heartbeat, config.detection, now),
            stall: Stall::new(config.heartbeat, config.detection, now),
            unreleased: None,
            waits_for_person: arbiter.waits_for_person(),
            arbiter: Claimant::start(arbiter, Side::Primary, answer),
            dialer: Dialer::start(transport, to_loop.clone()),
            redial: Some(rejoin::FIRST_DELAY),
            protected_at: None,
            next_epoch: now,
            paused_at: now,
            reported: now,
            early: false,
            must_end: false,
            ask_again: None,
            last: EpochStats::default(),
            floor: None,
            after_alone: None,
            stop_replies: Vec::new(),
            handover_replies: Vec::new(),
            guest_lost: None,
            audit,
            memory,
            parts,
            machine,
            pipe,
            link,
            base,
            policy,
            signature,
            record,
            maker,
            config,
            inbox,
            to_loop,
            events,
        }
    }

    /// What the role ends with; the guest has ended, or belongs to the other side.
    pub(super) fn leave(self) -> Result<Left, EngineError> {
        let lost = |why: &str| Ok(Left::Lost(why.to_owned()));
        match self.machine.state() {
            PrimaryState::Fenced => lost("the other side owns the guest; it was ended here"),
            PrimaryState::HandedOver if self.guest_lost.is_some() => {
                lost("the guest's process was lost here; the other side was told to take it over")
            }
            PrimaryState::HandedOver => Ok(Left::HandedOver(self.keep())),
            _ => {
                self.record.end()?;
                match self.guest_lost {
                    Some(how) => Err(EngineError::GuestLost { how }),
                    None => Ok(Left::Ended(End::GuestEnded)),
                }
            }
        }
    }
}
