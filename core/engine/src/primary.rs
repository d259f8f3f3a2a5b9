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
//!
//! Back-pressure, where the guest writes more than the link carries:
//! - At most one epoch waits while another is being sent: the link never idles, and no output waits for more than these two
//!   and its own.
//! - An epoch that is due before that runs on: what the guest writes twice in it is sent once. Where the policy says that it
//!   must end, and where an epoch is larger than staging, the guest is paused instead until the link has caught up.
//! - A loop that waits with the guest paused still takes acknowledgements and lets output go, and gives up the wait when the
//!   link is lost.

mod checkpoint;
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
use crate::sender::{Back, Sent};
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
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing::info;

/// The loop never sleeps longer than this: the guest's own events are polled.
const TICK: Duration = Duration::from_millis(20);
/// How often is looked for what nothing tells: a disk that asked for time, room on the link.
const LOOK: Duration = Duration::from_millis(1);
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
    sent: Receiver<Sent>,
    /// The last epoch that the transport has taken.
    taken: Epoch,
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
        let (sent_tx, sent) = channel();
        let ways = Back { states: states_tx, sent: sent_tx };
        let to_loop = to_loop.clone();
        let lost = move |e| drop(to_loop.send(Event::PagesLost(number, e)));
        thread::spawn(move || sender::run(&jobs, tx, codec, &back, &ways, lost));
        Pipe {
            staging,
            states,
            sent,
            taken: Epoch::COPY,
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
            sent: channel().1,
            taken: Epoch::COPY,
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
    resumed_at: Instant,
    /// When all but its end was with the transport.
    sent_at: Option<Instant>,
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
    /// The policy wants the open epoch to end even if the guest must be paused for it until the link has room.
    must_end: bool,
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
        let wait = if busy { LOOK } else { self.until_epoch() };
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
        if self.is_due() {
            self.epoch()?;
        }
        Ok(())
    }

    /// Whether the open epoch ends now.
    fn is_due(&mut self) -> bool {
        if self.unreleased.is_some() {
            return false;
        }
        let must_end = self.must_end && *self.machine.state() == PrimaryState::Protected;
        let may_seal = self.machine.may_seal();
        must_end || may_seal && (self.early || Instant::now() >= self.next_epoch && self.link_has_room())
    }

    /// Whether no more than one epoch is still to be sent: one more keeps the link busy, and does not wait for long.
    fn link_has_room(&mut self) -> bool {
        self.learn_sent();
        self.machine.sealed().0.saturating_sub(self.pipe.taken.0) <= 1
    }

    /// Lets the policy end the open epoch before its time, where it wants to look at it.
    fn ask_policy_again(&mut self) {
        let open = *self.machine.state() == PrimaryState::Protected;
        if self.ask_again.is_none_or(|at| Instant::now() < at) || !open {
            return;
        }
        let held = self.parts.networks.iter().map(|(_, n)| n.stats());
        let mut open = OpenEpoch { age: self.paused_at.elapsed(), ..OpenEpoch::default() };
        for stats in held {
            open.held_frames += stats.held_frames;
            open.held_bytes += stats.held_bytes;
        }
        let answer = self.policy.again(&open);
        self.must_end |= answer == Some(Duration::ZERO);
        self.ask_again = answer.map(|wait| Instant::now() + wait.clamp(SHORTEST_LOOK, LONGEST_EPOCH));
    }

    /// How long until the next epoch may begin, or the policy be asked about it.
    fn until_epoch(&mut self) -> Duration {
        let now = Instant::now();
        let next = match (self.machine.may_seal(), self.link_has_room()) {
            (false, _) => now + TICK,
            (true, true) => self.next_epoch,
            (true, false) => self.next_epoch.max(now + LOOK),
        };
        let asked = self.ask_again.filter(|_| *self.machine.state() == PrimaryState::Protected);
        asked.map_or(next, |at| at.min(next)).saturating_duration_since(now)
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
