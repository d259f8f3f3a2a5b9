//! The arbiter as a model: the first claim of a session wins, or a person decides; either side may be unable to ask.
//!
//! A claim is on its way, is heard and answered, and the answer arrives: three steps of a schedule, with anything in
//! between. The answer may get lost after the claim was heard, and a claim may be heard after its host has crashed.

use aventine_api::{Side, Verdict};
use std::collections::VecDeque;

/// Index of a side.
pub(crate) fn index(side: Side) -> usize {
    usize::from(side == Side::Standby)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) session: usize,
    pub(crate) answer: Option<Verdict>,
}

#[derive(Clone, Debug)]
pub(crate) struct Arbiter {
    pub(crate) manual: bool,
    /// Does not test before it sets: a deliberate break.
    pub(crate) forgetful: bool,
    /// Who owns the guest of each session.
    owners: Vec<Option<Side>>,
    pub(crate) away: [bool; 2],
    /// On their way, in order: an engine asks on a thread of its own.
    pub(crate) claims: [VecDeque<Claim>; 2],
}

impl Arbiter {
    pub(crate) fn new(manual: bool) -> Arbiter {
        Arbiter { manual, forgetful: false, owners: Vec::new(), away: [false; 2], claims: Default::default() }
    }

    pub(crate) fn owner(&self, session: usize) -> Option<Side> {
        self.owners.get(session).copied().flatten()
    }

    /// Whether the primary has won a session.
    pub(crate) fn kept(&self) -> bool {
        self.owners.contains(&Some(Side::Primary))
    }

    fn entry(&mut self, session: usize) -> &mut Option<Side> {
        if self.owners.len() <= session {
            self.owners.resize(session + 1, None);
        }
        &mut self.owners[session]
    }

    /// A person decides, once.
    pub(crate) fn decide(&mut self, session: usize, side: Side) -> bool {
        let open = self.manual && self.owner(session).is_none();
        if open {
            *self.entry(session) = Some(side);
        }
        open
    }

    /// A claim that reaches the arbiter, and its answer.
    pub(crate) fn hear(&mut self, session: usize, side: Side) -> Verdict {
        let (manual, forgetful) = (self.manual, self.forgetful);
        let owner = self.entry(session);
        if !manual {
            owner.get_or_insert(side);
        }
        match *owner {
            None => Verdict::Undecided,
            Some(owner) if owner == side || forgetful => Verdict::Won,
            Some(_) => Verdict::Lost,
        }
    }

    /// A host is gone: only the claim that was on its way may still be heard.
    pub(crate) fn forget(&mut self, side: Side) {
        self.claims[index(side)].truncate(1);
    }

    pub(crate) fn ask(&mut self, session: usize, side: Side) {
        self.claims[index(side)].push_back(Claim { session, answer: None });
    }
}
