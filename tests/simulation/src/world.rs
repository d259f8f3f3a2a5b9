//! The world: both hosts, the link between them, the arbiter, and how a choice changes them.

use crate::arbiter::{Arbiter, Claim, index};
use crate::breaks::Break;
use crate::guest::Mode;
use crate::network::{Lane, Link};
use crate::primary::PrimaryHost;
use crate::promise::{Promise, Violation};
use crate::schedule::{Choice, Setup};
use crate::standby::StandbyHost;
use crate::truth::Truth;
use aventine_api::{Side, Verdict};
use aventine_protocol::{PrimaryEvent, PrimaryState, StandbyEvent, StandbyState};

/// Everything there is.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) plant: Option<Break>,
    pub(crate) primary: PrimaryHost,
    pub(crate) standby: StandbyHost,
    pub(crate) link: Option<Link>,
    pub(crate) blocked: [bool; 2],
    pub(crate) arbiter: Arbiter,
    pub(crate) sessions: usize,
    pub(crate) takeovers: u64,
    pub(crate) handovers: u64,
    pub(crate) truth: Truth,
    pub(crate) violation: Option<Violation>,
    /// What happened, if anybody wants to read it.
    pub(crate) trace: Option<Vec<String>>,
}

/// Writes a line of the trace; costs nothing when nobody reads it.
macro_rules! note {
    ($world:expr, $($text:tt)+) => {
        if let Some(trace) = &mut $world.trace {
            trace.push(format!($($text)+));
        }
    };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(setup: Setup, plant: Option<Break>, traced: bool) -> World {
        let mut arbiter = Arbiter::new(setup.manual);
        arbiter.forgetful = plant == Some(Break::ArbiterForgets);
        World {
            setup,
            plant,
            primary: PrimaryHost::new(),
            standby: StandbyHost::new(true),
            link: None,
            blocked: [false; 2],
            arbiter,
            sessions: 0,
            takeovers: 0,
            handovers: 0,
            truth: Truth::new(),
            violation: None,
            trace: traced.then(Vec::new),
        }
    }

    pub(crate) fn is(&self, plant: Break) -> bool {
        self.plant == Some(plant)
    }

    /// The first violation stands.
    pub(crate) fn broken(&mut self, promise: Promise, what: impl Into<String>) {
        if self.violation.is_none() {
            let what = what.into();
            note!(self, "    {promise} is broken: {what}");
            self.violation = Some(Violation { promise, what });
        }
    }

    /// Makes a choice and checks what must hold at any time; `false` when it is not possible now.
    pub(crate) fn step(&mut self, choice: Choice) -> bool {
        let length = self.trace.as_ref().map(Vec::len);
        note!(self, "{choice:?}");
        let possible = self.apply(choice);
        if possible {
            self.check();
        } else if let (Some(trace), Some(length)) = (&mut self.trace, length) {
            trace.truncate(length);
        }
        possible
    }

    fn apply(&mut self, choice: Choice) -> bool {
        match choice {
            Choice::GuestRuns(what) => self.guest_runs(what),
            Choice::Copied => self.copied(),
            Choice::Seal => self.seal(),
            Choice::CarryOut(Side::Primary) => self.primary_carries_out(),
            Choice::CarryOut(Side::Standby) => self.standby_carries_out(),
            Choice::Deliver(lane) => self.deliver(lane),
            Choice::Connect => self.connect(),
            Choice::Reverse => self.reverse(),
            Choice::ArbiterHears { side, lost } => self.arbiter_hears(side, lost),
            Choice::VerdictArrives(side) => self.verdict_arrives(side),
            Choice::Notice(side, lane) => self.notice(side, lane),
            Choice::Detect(side) => self.hears_nothing(side) && self.loses_peer(side),
            Choice::ClockRunsAhead(side) => self.loses_peer(side),
            Choice::ChannelTimeout => self.channel_timeout(),
            fault => self.fault(fault),
        }
    }

    fn fault(&mut self, choice: Choice) -> bool {
        match choice {
            Choice::Crash(Side::Primary, keep) => self.crash_primary(keep.into()),
            Choice::Crash(Side::Standby, keep) => self.crash_standby(keep.into()),
            Choice::Restart(Side::Primary) => self.restart_primary(),
            Choice::Restart(Side::Standby) => self.standby.restart(),
            Choice::CutLink(keep) => self.cut(Lane::all(), keep),
            Choice::CutLane(lane, keep) => self.cut([lane], keep),
            Choice::Block(side) => !std::mem::replace(&mut self.blocked[index(side)], true),
            Choice::Heal(side) => std::mem::replace(&mut self.blocked[index(side)], false),
            Choice::Swallow(lane) => self.link.as_mut().is_some_and(|l| l.swallow(lane)),
            Choice::FailCommit => self.standby.fail_next_commit(),
            Choice::FailApply(part) => self.standby.fail_next_apply(part),
            Choice::StandbyFails => {
                self.standby.session.is_some() && self.standby_event(StandbyEvent::Failed(String::new()))
            }
            Choice::PrimaryFails | Choice::Stop | Choice::ShutDown => self.end(choice),
            Choice::GuestLost => self.guest_lost(),
            Choice::HandOver => self.hand_over(),
            Choice::ArbiterAway(side) => !std::mem::replace(&mut self.arbiter.away[index(side)], true),
            Choice::ArbiterBack(side) => std::mem::replace(&mut self.arbiter.away[index(side)], false),
            Choice::PersonDecides(side) => {
                // Nobody decides what nobody asks.
                let asked = self.arbiter.claims.iter().any(|c| !c.is_empty());
                asked && self.arbiter.decide(self.sessions - 1, side)
            }
            _ => false,
        }
    }

    fn cut(&mut self, lanes: impl IntoIterator<Item = Lane>, keep: u8) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut alive = false;
        for lane in lanes {
            alive |= !link.is_dead(lane);
            link.kill(lane, keep.into());
        }
        alive
    }

    fn deliver(&mut self, lane: Lane) -> bool {
        let there = self.link.as_ref().is_some_and(|l| l.has_message(lane));
        if !there || self.blocked[index(lane.receiver())] {
            return false;
        }
        let busy = match lane.receiver() {
            Side::Primary => !self.primary_listens() || self.primary.session.as_ref().is_some_and(|s| s.deaf),
            Side::Standby => !self.standby_listens(),
        };
        if busy {
            return false;
        }
        let Some(arrival) = self.link.as_mut().and_then(|l| l.receive(lane)) else { return false };
        match lane.receiver() {
            Side::Primary => self.primary_receives(arrival),
            Side::Standby => self.standby_receives(lane, arrival),
        }
        true
    }

    fn loses_peer(&mut self, side: Side) -> bool {
        match side {
            Side::Primary => self.primary_hears_nothing(),
            Side::Standby => self.standby_follows() && self.standby_event(StandbyEvent::PeerLost),
        }
    }

    /// The handshake, as one step: before both are through nothing depends on either.
    fn connect(&mut self) -> bool {
        let network = self.blocked == [false; 2];
        if !(network && self.primary.wants_session() && self.standby.wants_session()) {
            return false;
        }
        let session = self.sessions;
        self.sessions += 1;
        self.truth.begin_session();
        self.standby.begin(session, self.plant);
        self.link = Some(Link::new());
        self.primary_begins(session);
        true
    }

    /// The host that took over becomes the primary of the sessions to come, once the other one runs no guest any more.
    fn reverse(&mut self) -> bool {
        let Some(state) = self.standby.active.filter(|_| self.standby.is_up() && self.primary.is_idle())
        else {
            return false;
        };
        let was_up = self.primary.resumed_elsewhere(state);
        self.standby = StandbyHost::new(was_up);
        self.truth.primary_owns = true;
        true
    }

    fn notice(&mut self, side: Side, lane: Lane) -> bool {
        let listens = match side {
            Side::Primary => self.primary_listens(),
            Side::Standby => self.standby_listens() && lane != Lane::Up,
        };
        if !listens || !self.link.as_mut().is_some_and(|l| l.notice(side, lane)) {
            return false;
        }
        match side {
            Side::Primary => self.primary_event(PrimaryEvent::LinkLost),
            Side::Standby => self.channel_lost(),
        }
    }

    fn arbiter_hears(&mut self, side: Side, lost: bool) -> bool {
        let Some(&Claim { session, answer: None }) = self.arbiter.claims[index(side)].front() else {
            return false;
        };
        let away = self.arbiter.away[index(side)];
        let heard = if away { Verdict::Undecided } else { self.arbiter.hear(session, side) };
        let verdict = if lost { Verdict::Undecided } else { heard };
        note!(self, "    session {session}, {}: {verdict:?}", side.name());
        if let Some(claim) = self.arbiter.claims[index(side)].front_mut() {
            claim.answer = Some(verdict);
        }
        true
    }

    fn verdict_arrives(&mut self, side: Side) -> bool {
        let Some(&Claim { session, answer: Some(verdict) }) = self.arbiter.claims[index(side)].front() else {
            return false;
        };
        let (current, listens) = match side {
            Side::Primary => (self.primary.session.as_ref().map(|s| s.id), self.primary_listens()),
            Side::Standby => (self.standby.session.as_ref().map(|s| s.id), self.standby_listens()),
        };
        if current.is_some() && !listens {
            return false;
        }
        self.arbiter.claims[index(side)].pop_front();
        // The answer to a claim of an earlier session says nothing about this one.
        if current == Some(session) || self.is(Break::VerdictOfEarlierSession) {
            match side {
                Side::Primary => self.primary_event(PrimaryEvent::Verdict(verdict)),
                Side::Standby => self.standby_event(StandbyEvent::Verdict(verdict)),
            };
        }
        true
    }

    /// What must hold after every step, whatever the step was.
    fn check(&mut self) {
        if self.standby.active.is_some() && self.primary.speaks() {
            self.broken(Promise::OneOwner, "both guests speak");
        }
        let Some(session) = self.primary.session.as_ref().filter(|s| s.todo.is_empty()) else { return };
        let (state, runs) = (session.machine.state().clone(), self.primary.guest.is_some());
        match state {
            PrimaryState::Alone if !runs => {
                self.broken(Promise::AnEndingHasAReason, "a guest that has ended counts as running");
            }
            PrimaryState::Alone if self.primary.frozen => {
                self.broken(Promise::NeverFrozenNeverMuted, "a guest that is alone is still paused");
            }
            PrimaryState::Alone if self.primary.buffer.mode != Mode::Passing => {
                self.broken(Promise::NeverFrozenNeverMuted, "a guest that is alone is still held");
            }
            PrimaryState::Resolving if self.truth.primary_owns => self.broken(
                Promise::NeverFrozenNeverMuted,
                "the primary waits for the arbiter although no standby may promote",
            ),
            PrimaryState::Resolving if self.truth.renounced => self.broken(
                Promise::NeverFrozenNeverMuted,
                "the primary waits for the arbiter although the standby has disarmed itself",
            ),
            _ => {}
        }
    }

    /// From here on nothing new fails: what is due happens, fairly, a bounded number of times. Then everything that
    /// should go on must have gone on.
    pub(crate) fn settle(&mut self) {
        note!(self, "nothing fails any more");
        self.arbiter.away = [Side::Primary, Side::Standby].map(|side| self.setup.away == Some(side));
        if self.setup.heals {
            self.blocked = [false; 2];
        }
        for _ in 0..ROUNDS {
            self.round();
            if self.violation.is_some() {
                return;
            }
        }
        self.check_settled();
    }

    fn round(&mut self) {
        let all =
            |world: &mut World, choice: Choice| while world.violation.is_none() && world.step(choice) {};
        self.step(Choice::Copied);
        for lane in Lane::all() {
            while self.violation.is_none() {
                let before = self.step(Choice::Deliver(lane));
                all(self, Choice::CarryOut(lane.receiver()));
                if !before {
                    break;
                }
            }
        }
        for side in [Side::Primary, Side::Standby] {
            for lane in Lane::all() {
                self.step(Choice::Notice(side, lane));
                all(self, Choice::CarryOut(side));
            }
            self.step(Choice::Detect(side));
            all(self, Choice::CarryOut(side));
        }
        self.step(Choice::ChannelTimeout);
        all(self, Choice::CarryOut(Side::Standby));
        for side in [Side::Primary, Side::Standby] {
            self.step(Choice::PersonDecides(side));
            self.step(Choice::ArbiterHears { side, lost: false });
            self.step(Choice::VerdictArrives(side));
            all(self, Choice::CarryOut(side));
        }
        self.step(Choice::Seal);
    }

    /// Whether a side hears nothing of the other.
    pub(crate) fn hears_nothing(&self, side: Side) -> bool {
        let (from, alive) = match side {
            Side::Primary => (Lane::Up, self.standby.session.as_ref().is_some_and(|s| s.heartbeat)),
            Side::Standby => (Lane::Down, self.primary.session.as_ref().is_some_and(|s| s.heartbeat)),
        };
        let deaf = side == Side::Primary && self.primary.session.as_ref().is_some_and(|s| s.deaf);
        deaf || !alive || self.blocked[index(side)] || self.link.as_ref().is_none_or(|l| l.is_dead(from))
    }

    fn check_settled(&mut self) {
        let muted = Promise::NeverFrozenNeverMuted;
        let primary = self.primary.session.as_ref().map(|s| s.machine.state().clone());
        let standby = self.standby.session.as_ref().map(|s| s.machine.state().clone());
        let owner = self.sessions.checked_sub(1).and_then(|s| self.arbiter.owner(s));
        let promotes = owner != Some(Side::Primary) && self.standby.could_promote(&self.truth);
        use PrimaryState::{Ending, HandingOver, Resolving, Yielded};
        let away = self.setup.away;
        if away == Some(Side::Primary) && primary == Some(Resolving) {
            // It cannot know. The standby can, and goes on unless it was too late.
            if promotes {
                self.broken(
                    muted,
                    format!("the primary cannot ask, and the standby does not ask ({standby:?})"),
                );
            }
            return;
        }
        if let Some(state @ (Ending(_) | Resolving | HandingOver | Yielded)) = &primary {
            self.broken(muted, format!("the primary is still {state:?}"));
        }
        if self.primary.guest.is_some() && !self.truth.unheard.is_empty() {
            let dropped = self.primary.buffer.held.is_empty();
            let (promise, what) = match dropped {
                true => (Promise::NothingSilent, "the network buffer has lost frames"),
                false => (muted, "the guest's output is held for good"),
            };
            self.broken(promise, format!("{what} ({primary:?})"));
        }
        if away == Some(Side::Standby) {
            return;
        }
        if standby == Some(StandbyState::Resolving) {
            self.broken(muted, "the standby still waits for the arbiter");
        }
        if self.primary.lost_the_guest() && promotes {
            self.broken(
                muted,
                format!("the primary is lost and the standby does not take over ({standby:?})"),
            );
        }
    }
}

/// How often everything that is due happens at the end: the bound within which a guest must talk again.
const ROUNDS: usize = 8;
