//! The primary: the epoch loop.
//!
//! ```text
//!        ┌──────────────────────────── turn ────────────────────────────┐
//!        │ wait for an event or the next epoch ─► step the machine ─►   │
//!        │ carry out its actions ─► housekeeping ─► copy │ epoch        │
//!        └──────────────────────────────────────────────────────────────┘
//!  epoch:  pausing · pause · seal · start_state · dirty · capture · finish_state · resume · hand over
//! ```
//! One thread runs this loop, the guest plugin and all epoch verbs. Beside it: the sender ([`crate::sender`]), the
//! control channel's reader, the heartbeat, the arbiter's thread, and what plugins own. [`aventine_protocol::Primary`]
//! decides; this file carries out.

mod operate;
mod rejoin;
mod start;
mod steer;

pub(crate) use start::{Tools, begin, go_on};

use crate::arbiter::{Answer, Claimant, Record};
use crate::audit::Auditor;
use crate::control::{Inbox, Quantiles};
use crate::link::{Connected, Dialer, PrimaryLink};
use crate::memory::GuestMemory;
use crate::parts::{During, Maker, Parts, PluginFailure, Report};
use crate::roles::Kept;
use crate::silence::Silence;
use crate::staging::{CopyStep, SenderGone, Staging};
use crate::stall::Stall;
use crate::stats::Samples;
use crate::wire::FrameTx;
use crate::{End, EngineError, sender};
use aventine_api::{
    Codec, Epoch, EpochPolicy, EpochStats, LONGEST_EPOCH, Link, OpenEpoch, PageBitmap, PluginError, RecordRx,
};
use aventine_config::Config;
use aventine_protocol::{Base, Message, Primary, PrimaryEvent, PrimaryState};
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing::info;

/// The loop never sleeps longer than this: the guest's own events are polled.
const TICK: Duration = Duration::from_millis(20);
/// A policy that wants to look at the open epoch all the time looks this often.
const SHORTEST_LOOK: Duration = Duration::from_micros(100);
/// How often the initial copy goes over memory before it leaves the rest to the first checkpoint.
const COPY_ROUNDS: u32 = 7;

/// What the loop waits for, besides the time. Numbers name the link that an event is of.
pub(crate) enum Event {
    /// A message from the standby.
    Message(u32, Epoch, Message),
    /// The control channel has failed or ended.
    ChannelLost(u32, PluginError),
    /// The pages channel has.
    PagesLost(u32, PluginError),
    /// A plugin's own thread says something.
    Plugin(Report),
    /// The arbiter's answer.
    Arbiter(Answer),
    /// A standby was found after the last one was lost.
    Linked(Box<dyn Link>),
}

/// How the primary's role ends.
pub(crate) enum Left {
    /// With the guest, or before it ran.
    Ended(End),
    /// The other side owns the guest, or nothing is left here that could run; why.
    Lost(String),
    /// The guest was handed over.
    HandedOver(Kept),
}

/// Gives each disk and each network its channel.
fn replicate(parts: &mut Parts, link: &mut Connected) -> Result<(), PluginFailure> {
    for ((id, disk), (tx, back)) in parts.disks.iter_mut().zip(link.disks.drain(..)) {
        let back = back.map(|rx| Box::new(rx) as Box<dyn RecordRx>);
        disk.replicate(Box::new(tx), back).during(id, "starting to replicate")?;
    }
    for ((id, network), tx) in parts.networks.iter_mut().zip(link.networks.drain(..)) {
        network.replicate(Box::new(tx)).during(id, "starting to replicate")?;
    }
    Ok(())
}

/// The way of one session's pages: from guest memory to the sender.
struct Pipe {
    staging: Staging,
    states: Receiver<Vec<u8>>,
    /// Dirty pages that no sealed epoch holds yet; clear except after a failure and for the first epoch.
    dirty: PageBitmap,
    pending: VecDeque<Pending>,
    spare: Vec<PageBitmap>,
    copy: Option<Copy>,
}

impl Pipe {
    fn start(
        config: &Config,
        copy: Copy,
        codec: Box<dyn Codec>,
        mut tx: FrameTx,
        number: u32,
        to_loop: &Sender<Event>,
    ) -> Pipe {
        let (jobs_tx, jobs) = channel();
        let (staging, back) = Staging::new(config.staging, jobs_tx, |bytes| tx.memory(bytes));
        let (states_tx, states) = channel();
        let to_loop = to_loop.clone();
        let lost = move |e| drop(to_loop.send(Event::PagesLost(number, e)));
        thread::spawn(move || sender::run(&jobs, tx, codec, &back, &states_tx, lost));
        Pipe {
            staging,
            states,
            dirty: PageBitmap::new(copy.todo.pages()),
            pending: VecDeque::new(),
            spare: Vec::new(),
            copy: Some(copy),
        }
    }

    /// No session, no way.
    fn idle(pages: u64) -> Pipe {
        let (staging, _) = Staging::new(0, channel().0, |_| None);
        Pipe {
            staging,
            states: channel().1,
            dirty: PageBitmap::new(pages),
            pending: VecDeque::new(),
            spare: Vec::new(),
            copy: None,
        }
    }
}

/// The live initial copy of memory, in rounds.
struct Copy {
    round: u32,
    todo: PageBitmap,
    at: u64,
    pages_sent: u64,
    pages_known: u64,
}

impl Copy {
    /// The standby's memory begins as this guest's did: the first round copies what was written since.
    fn since_base(parts: &mut Parts, pages: u64) -> Result<Copy, PluginFailure> {
        let mut todo = PageBitmap::new(pages);
        parts.dirty(&mut todo)?;
        let pages_known = todo.count();
        Ok(Copy { round: 0, todo, at: 0, pages_sent: 0, pages_known })
    }

    /// The first round copies whatever is not zero: the standby's memory begins as zeroes.
    fn begin(parts: &mut Parts, pages: u64) -> Result<Copy, PluginFailure> {
        let mut copy = Copy::since_base(parts, pages)?;
        // What was written until now is in the first round, whatever its bits say; only later writes are news.
        parts.guest.populated(&mut copy.todo).during("guest", "finding the pages to copy")?;
        copy.pages_known = copy.todo.count();
        Ok(copy)
    }
}

/// An epoch sealed and not acknowledged: its dirty bits are kept until it is.
struct Pending {
    epoch: Epoch,
    sealed_at: Instant,
    dirty: PageBitmap,
}

/// What was asked for once the guest is this side's alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterAlone {
    PowerDown,
    Kill,
}

/// A running measurement of the guest's own pause + save + resume.
struct FloorRun {
    left: u32,
    /// Whether an epoch has ended since the last round.
    due: bool,
    samples: Samples,
    reply: Sender<Result<Quantiles, String>>,
}

/// Everything the epoch loop owns.
struct Loop<'a> {
    audit: Option<Auditor>,
    memory: GuestMemory,
    parts: Parts,
    machine: Primary,
    policy: Box<dyn EpochPolicy>,
    pipe: Pipe,
    next_epoch: Instant,
    paused_at: Instant,
    early: bool,
    /// When the policy wants to be asked again within the open epoch.
    ask_again: Option<Instant>,
    last: EpochStats,
    link: PrimaryLink,
    silence: Silence,
    stall: Stall,
    /// Output of the epochs up to this one waits for the disks.
    unreleased: Option<Epoch>,
    arbiter: Claimant,
    /// Whether its verdict may be long in coming: then no guest is paused for it.
    waits_for_person: bool,
    dialer: Dialer,
    /// How long to wait before a lost standby is looked for; `None`: it is not, because protection was ended.
    redial: Option<Duration>,
    /// When protection was last complete.
    protected_at: Option<Instant>,
    record: &'a mut Record,
    /// What memory was when the guest was taken over; offered to the first standby after that.
    base: Option<Base>,
    floor: Option<FloorRun>,
    after_alone: Option<AfterAlone>,
    stop_replies: Vec<Sender<Result<(), String>>>,
    handover_replies: Vec<Sender<Result<(), String>>>,
    guest_lost: Option<String>,
    reported: Instant,
    signature: Vec<(String, String)>,
    maker: &'a Maker<'a>,
    config: &'a Config,
    inbox: &'a Inbox,
    to_loop: &'a Sender<Event>,
    events: &'a Receiver<Event>,
}

impl Loop<'_> {
    fn run(mut self) -> Result<Left, EngineError> {
        loop {
            self.turn()?;
            match self.machine.state() {
                PrimaryState::Ended | PrimaryState::Fenced => return self.leave(),
                PrimaryState::HandedOver => {
                    if self.guest_lost.is_some() {
                        self.await_link_end();
                    }
                    return self.leave();
                }
                // Asked to end a guest that is somebody else's, this side only lets go of it.
                PrimaryState::Alone if self.after_alone.is_some() && self.parts.guest.outlives() => {
                    return Ok(Left::Ended(End::LetGo));
                }
                _ => {}
            }
        }
    }

    /// The guest's memory, without anything else of it.
    fn keep(self) -> Kept {
        let Loop { memory, parts, machine, link, .. } = self;
        drop(memory);
        let Parts { guest, networks, exports, vhosts, disks, .. } = parts;
        // They free what a standby's instances need: sockets, ports, images.
        drop((networks, exports, vhosts, disks));
        Kept { base: Base { session: link.session, epoch: machine.acknowledged() }, guest }
    }

    /// One turn of the loop.
    fn turn(&mut self) -> Result<(), EngineError> {
        let busy = self.pipe.copy.is_some() || self.unreleased.is_some();
        let wait = if busy { Duration::from_millis(1) } else { self.until_epoch() };
        let mut event = self.events.recv_timeout(wait.min(TICK)).ok();
        while let Some(e) = event {
            self.take(e)?;
            event = self.events.try_recv().ok();
        }
        self.housekeeping()?;
        self.release_due()?;
        if self.pipe.copy.is_some() {
            self.copy()?;
        }
        self.ask_policy_again();
        let may_seal = self.machine.may_seal() && self.unreleased.is_none();
        if may_seal && (self.early || Instant::now() >= self.next_epoch) {
            self.epoch()?;
        }
        Ok(())
    }

    /// Lets the policy end the open epoch before its time, where it wants to look at it.
    fn ask_policy_again(&mut self) {
        if self.ask_again.is_none_or(|at| Instant::now() < at) || !self.machine.may_seal() {
            return;
        }
        let held = self.parts.networks.iter().map(|(_, n)| n.stats());
        let mut open = OpenEpoch { age: self.paused_at.elapsed(), ..OpenEpoch::default() };
        for stats in held {
            open.held_frames += stats.held_frames;
            open.held_bytes += stats.held_bytes;
        }
        let answer = self.policy.again(&open);
        self.early |= answer == Some(Duration::ZERO);
        self.ask_again = answer.map(|wait| Instant::now() + wait.clamp(SHORTEST_LOOK, LONGEST_EPOCH));
    }

    /// How long until the next epoch may begin, or the policy be asked about it.
    fn until_epoch(&self) -> Duration {
        if !self.machine.may_seal() {
            return TICK;
        }
        let next = self.ask_again.map_or(self.next_epoch, |at| at.min(self.next_epoch));
        next.saturating_duration_since(Instant::now())
    }

    /// The epoch loop's heart: one checkpoint, from pause to hand-over.
    fn epoch(&mut self) -> Result<(), EngineError> {
        self.parts.disks.iter().for_each(|(_, d)| d.pausing());
        self.parts.networks.iter_mut().for_each(|(_, n)| n.pausing());
        self.paused_at = Instant::now();
        let captured = self.checkpoint();
        // After the final epoch of a handover nothing may happen here any more.
        let resumed = match captured.is_ok() && self.machine.is_final() {
            true => Ok(()),
            false => self.parts.guest.resume().during("guest", "resuming"),
        };
        let pause = self.paused_at.elapsed();
        match captured.and_then(|c| resumed.map(|()| c).map_err(Failure::Plugin)) {
            Ok(captured) => self.give_to_sender(captured, pause),
            Err(Failure::Plugin(failure)) => self.local_error(&failure),
            Err(Failure::Link) => self.step(PrimaryEvent::LinkLost),
        }
    }

    /// The pause, without the resume: seals every buffer and captures memory and device state.
    fn checkpoint(&mut self) -> Result<Captured, Failure> {
        self.parts.guest.pause().during("guest", "pausing")?;
        let (epoch, armed) = self.machine.seal().map_err(|_| Failure::Link)?;
        for (id, network) in &mut self.parts.networks {
            network.seal(epoch).during(id, "sealing")?;
        }
        for (id, disk) in &mut self.parts.disks {
            disk.seal(epoch).during(id, "sealing")?;
        }
        self.parts.guest.start_state().during("guest", "saving its device state")?;
        let scan = Instant::now();
        let found = self.parts.dirty(&mut self.pipe.dirty);
        let scan_time = scan.elapsed();
        let copy = Instant::now();
        let pages = match found {
            Ok(()) => {
                let audited = self.audit.as_mut().and_then(|a| a.seal(epoch));
                audited.into_iter().for_each(|sealed| self.pipe.staging.audit(sealed));
                self.pipe.staging.capture(epoch, &self.pipe.dirty, &self.memory)?
            }
            Err(failure) => return Err(failure.into()),
        };
        let copy_time = copy.elapsed();
        let mut state = self.pipe.states.try_recv().unwrap_or_default();
        self.parts.guest.finish_state(&mut state).during("guest", "saving its device state")?;
        Ok(Captured { epoch, armed, pages, state, scan_time, copy_time })
    }

    /// The guest runs again: gives the checkpoint to the sender and plans the next.
    fn give_to_sender(&mut self, captured: Captured, pause: Duration) -> Result<(), EngineError> {
        let Captured { epoch, armed, pages, state, scan_time, copy_time } = captured;
        let clean = self.pipe.spare.pop().unwrap_or_else(|| PageBitmap::new(self.memory.pages()));
        let dirty = std::mem::replace(&mut self.pipe.dirty, clean);
        self.pipe.pending.push_back(Pending { epoch, sealed_at: self.paused_at, dirty });
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
        let planned = if self.early || late > interval { self.paused_at } else { self.next_epoch };
        self.early = false;
        self.next_epoch = planned + interval;
        self.ask_again = Some(Instant::now());
        let mut measured = self.inbox.shared.lock().unwrap_or_else(PoisonError::into_inner);
        measured.pause.push_time(pause);
        measured.scan.push_time(scan_time);
        measured.copy.push_time(copy_time);
        measured.dirty.push(pages);
        Ok(())
    }

    /// A part of the initial copy: as much as staging takes at once, so that the loop stays awake.
    fn copy(&mut self) -> Result<(), EngineError> {
        let Some(copy) = &mut self.pipe.copy else { return Ok(()) };
        loop {
            match self.pipe.staging.capture_some(&copy.todo, copy.at, &self.memory) {
                Ok(CopyStep::Copied { pages, next }) => {
                    copy.at = next;
                    copy.pages_sent += pages;
                }
                Ok(CopyStep::Full) => return Ok(()),
                Ok(CopyStep::Done) => break,
                Err(SenderGone) => return self.step(PrimaryEvent::LinkLost),
            }
        }
        (copy.round, copy.at) = (copy.round + 1, 0);
        copy.todo.clear();
        if let Err(failure) = self.parts.dirty(&mut copy.todo) {
            return self.local_error(&failure);
        }
        let left = copy.todo.count();
        copy.pages_known = copy.pages_sent + left;
        let disks_done = self.parts.disks.iter().map(|(_, d)| d.progress()).all(|p| p.done == p.total);
        let enough = left <= self.memory.pages() / 64 || copy.round >= COPY_ROUNDS;
        if disks_done && enough {
            self.pipe.dirty.merge(&copy.todo);
            info!(rounds = copy.round, pages = copy.pages_sent, "initial copy done");
            self.pipe.copy = None;
            return self.step(PrimaryEvent::Copied);
        }
        Ok(())
    }
}

/// A checkpoint as it comes out of the pause.
struct Captured {
    epoch: Epoch,
    armed: bool,
    pages: u64,
    state: Vec<u8>,
    scan_time: Duration,
    copy_time: Duration,
}

/// Why a pause yielded no checkpoint.
enum Failure {
    Plugin(PluginFailure),
    Link,
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
