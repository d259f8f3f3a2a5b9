//! What really happened: recorded beside the model, known to nobody in it, compared with what the hosts do.

use crate::guest::State;
use aventine_api::Epoch;
use aventine_protocol::EndReason;
use std::collections::VecDeque;

/// What is true of the session that began last.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    /// The guest at each seal, by epoch; at 0 stands nothing.
    pub(crate) snapshots: Vec<State>,
    /// The last epoch that the standby was told to commit.
    pub(crate) committed: Epoch,
    /// The last epoch of which the acknowledgement has reached the primary.
    pub(crate) acknowledged: Epoch,
    /// Why the primary ends.
    pub(crate) end: Option<EndReason>,
    /// The standby was told to end while it followed, or that the guest has shut down.
    pub(crate) standby_told: bool,
    /// The standby took the primary for lost, or was told to take over.
    pub(crate) standby_lost_primary: bool,
    /// The primary has the standby's word that it will never promote.
    pub(crate) renounced: bool,
    /// The first epoch before whose seal output was held: from then on the standby may promote.
    first_armed: Option<Epoch>,
    /// Nothing has failed at the standby.
    pub(crate) standby_sound: bool,
    /// An application failed half-way.
    pub(crate) half_applied: bool,
    /// The guest may be heard without an acknowledgement: no armed seal was given out, or this side owns the guest.
    pub(crate) primary_owns: bool,
    /// What the guest said and the world has not heard, and the epoch it was sealed into.
    pub(crate) unheard: VecDeque<(u64, Option<Epoch>)>,
    /// The last thing that the world has heard from the primary.
    pub(crate) heard: u64,
}

impl Truth {
    pub(crate) fn new() -> Truth {
        Truth {
            snapshots: vec![State::default()],
            committed: Epoch::COPY,
            acknowledged: Epoch::COPY,
            end: None,
            standby_told: false,
            standby_lost_primary: false,
            renounced: false,
            first_armed: None,
            standby_sound: true,
            half_applied: false,
            primary_owns: true,
            unheard: VecDeque::new(),
            heard: 0,
        }
    }

    /// Another session begins; the guest and what it says go on.
    pub(crate) fn begin_session(&mut self) {
        let unheard = std::mem::take(&mut self.unheard);
        *self = Truth { unheard, heard: self.heard, ..Truth::new() };
    }

    /// An epoch is sealed, and the primary says whether it is armed; the buffer knows whether it holds.
    pub(crate) fn seal(&mut self, epoch: Epoch, armed: bool, holds: bool, state: State) {
        self.unheard
            .iter_mut()
            .rev()
            .map_while(|(_, e)| e.is_none().then_some(e))
            .for_each(|e| *e = Some(epoch));
        self.snapshots.push(state);
        self.primary_owns &= !armed;
        self.first_armed = self.first_armed.or(holds.then_some(epoch));
    }

    /// Whether the standby has committed an epoch from which it may promote.
    pub(crate) fn armed(&self) -> bool {
        self.first_armed.is_some_and(|first| self.committed >= first)
    }

    pub(crate) fn snapshot(&self, epoch: Epoch) -> State {
        self.snapshots.get(epoch.0 as usize).copied().unwrap_or_default()
    }
}
