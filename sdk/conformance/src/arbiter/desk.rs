//! A service, and what the cases ask of it.

use super::ArbiterBench;
use crate::suite::{Seen, calmly};
use aventine_api::{Arbiter, PluginError, SessionId, Side, Verdict};
use std::thread;
use std::time::{Duration, Instant};

/// Between two questions.
const LOOK: Duration = Duration::from_millis(2);

pub(super) const SIDES: [Side; 2] = [Side::Primary, Side::Standby];

pub(super) struct Desk<B> {
    pub(super) bench: B,
    pub(super) module: &'static str,
}

/// A session that no other one is nearer to than by a bit at either end.
pub(super) fn session(number: u32) -> SessionId {
    let mut id = [0x5a; 16];
    let [.., high, low] = number.to_be_bytes();
    (id[0], id[15]) = (high ^ low, low);
    id[8..12].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

/// Which side a verdict makes the owner.
pub(super) fn owner(side: Side, verdict: Verdict) -> Option<Side> {
    match verdict {
        Verdict::Won => Some(side),
        Verdict::Lost => Some(side.other()),
        Verdict::Undecided => None,
    }
}

/// The plugin of one side.
pub(super) struct Claimant {
    arbiter: Box<dyn Arbiter>,
    side: Side,
    patience: Duration,
}

impl Claimant {
    pub(super) fn new<B: ArbiterBench>(place: &str, side: Side) -> Claimant {
        Claimant { arbiter: B::claimant(place, side), side, patience: B::PATIENCE }
    }

    /// Asks once.
    pub(super) fn claim(&mut self, session: SessionId) -> Result<Result<Verdict, PluginError>, String> {
        calmly("`claim`", || self.arbiter.claim(session, self.side))
    }

    /// Asks until there is an owner.
    pub(super) fn owner(&mut self, session: SessionId) -> Result<Side, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = self.claim(session)?;
            if let Some(owner) = answer.as_ref().ok().and_then(|verdict| owner(self.side, *verdict)) {
                return Ok(owner);
            }
            if Instant::now() >= deadline {
                let name = self.side.name();
                let answer = answer.map_err(|e| e.chain());
                return Err(format!("the {name} got no verdict in {:?}, last {answer:?}", self.patience));
            }
            thread::sleep(LOOK);
        }
    }

    pub(super) fn expect(&mut self, session: SessionId, owner: Side, when: &str) -> Seen {
        match self.owner(session)? {
            is if is == owner => Ok(()),
            is => {
                let (side, is, owner) = (self.side.name(), is.name(), owner.name());
                Err(format!("{when}, the {side} is told that the {is} owns the guest; it is the {owner}"))
            }
        }
    }

    pub(super) fn probe(&mut self) -> Result<Result<(), PluginError>, String> {
        calmly("`probe`", || self.arbiter.probe())
    }

    pub(super) fn waits_for_person(&self) -> bool {
        self.arbiter.waits_for_person()
    }
}

impl<B: ArbiterBench> Desk<B> {
    pub(super) fn start(module: &'static str) -> Desk<B> {
        Desk { bench: B::start(), module }
    }

    pub(super) fn claimant(&self, side: Side) -> Claimant {
        Claimant::new::<B>(&self.bench.place(), side)
    }

    /// Both sides' plugins.
    pub(super) fn hosts(&self) -> [Claimant; 2] {
        SIDES.map(|side| self.claimant(side))
    }

    pub(super) fn waits_for_person(&self) -> bool {
        self.claimant(Side::Primary).waits_for_person()
    }

    /// Where a person decides, that is done now, for `owner`.
    pub(super) fn decide(&self, session: SessionId, owner: Side) {
        if self.waits_for_person() {
            self.bench.decide(session, owner);
        }
    }

    /// `first` claims before the other side, and owns the guest.
    pub(super) fn settle(&self, hosts: &mut [Claimant; 2], session: SessionId, first: Side) -> Seen {
        self.decide(session, first);
        hosts[place(first)].expect(session, first, "after its claim, which was the first")
    }

    /// Waits until the service can be asked.
    pub(super) fn await_service(&self, claimant: &mut Claimant) -> Seen {
        let deadline = Instant::now() + B::PATIENCE;
        while let Err(e) = claimant.probe()? {
            if Instant::now() >= deadline {
                return Err(format!("the service is there, and `probe` fails: {}", e.chain()));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Where a side stands among the hosts.
pub(super) fn place(side: Side) -> usize {
    usize::from(side == Side::Standby)
}
