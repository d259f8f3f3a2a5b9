//! The standby's state machine.
//!
//! ```text
//!            armed epoch committed
//!  Following ────────────────────► (armed) ─┬─ peer lost, yield ─► Resolving ─┬─ won ──► Active
//!     │                                     │  handover                       └─ lost, guest shut down ─► Ended
//!     │ end, peer lost, failure             ├─ end ─► Ended
//!     ▼                                     └─ failure ─► Ended (renounced)
//!   Ended
//! ```
//! Invariants:
//! - Epoch n commits when the pages channel and every disk have said that n is complete and checked, in order.
//! - `Commit(n)`, `Acknowledge(n)`, `Apply(n)` are answered together, in this order; nothing is acknowledged any more
//!   once the peer counts as lost.
//! - `TakeOver(n)` names the last committed epoch, and is never answered after a failed application or before an
//!   armed epoch was committed.

use crate::{EndReason, Violation};
use aventine_api::{Epoch, Verdict};
use std::collections::VecDeque;

/// Where the standby stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyState {
    /// Receives checkpoints.
    Following,
    /// The primary is lost: the arbiter decides.
    Resolving,
    /// Owns the guest.
    Active,
    /// Will never promote in this session. With the primary's reason, if it gave one.
    Ended(Option<EndReason>),
}

/// What happens to the standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyEvent {
    /// Pages and device state of an epoch are complete and checked.
    PagesStaged {
        /// The epoch.
        epoch: Epoch,
        /// Whether all output since the epoch before was held.
        armed: bool,
    },
    /// Every write of an epoch to this disk is complete and checked.
    DiskStaged {
        /// Position of the disk.
        disk: usize,
        /// The epoch.
        epoch: Epoch,
    },
    /// The primary said that protection ends.
    End(EndReason),
    /// The primary said that its guest is gone and silenced.
    Yield,
    /// The primary said that its guest waits, paused, for this side to run it: a planned handover.
    HandOver,
    /// The control channel has ended or been silent, and the detection time has passed.
    PeerLost,
    /// Something here failed, before or while an epoch was applied.
    Failed(String),
    /// The arbiter's answer to `Claim`; an arbiter that cannot be reached is `Undecided`.
    Verdict(Verdict),
}

/// What the engine must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyAction {
    /// Make the epoch part of what a takeover resumes from.
    Commit(Epoch),
    /// Tell the primary.
    Acknowledge(Epoch),
    /// Bring the epoch into the memory image and the disks; report a failure.
    Apply(Epoch),
    /// Answer `End`.
    SendEndAck,
    /// Tell the primary that this side has disarmed itself, and why.
    SendFailed(String),
    /// Ask the arbiter, and report the verdict. From now on this side no longer says that it is alive: a primary that
    /// lives must notice that nobody follows it, and ask as well.
    Claim,
    /// Discard what is later than this epoch and run the guest from it. In a handover ([`Standby::is_handover`]), tell
    /// the primary then.
    TakeOver(Epoch),
}

/// The standby of one session.
#[derive(Clone, Debug)]
pub struct Standby {
    state: StandbyState,
    committed: Epoch,
    armed: bool,
    pages: Epoch,
    /// Whether each epoch between `committed` and `pages` is armed.
    pages_armed: VecDeque<bool>,
    disks: Vec<Epoch>,
    /// The primary waits for this side to run the guest.
    handover: bool,
}

impl Standby {
    /// A standby for a guest with `disks` disks.
    pub fn new(disks: usize) -> Standby {
        Standby {
            state: StandbyState::Following,
            committed: Epoch::COPY,
            armed: false,
            pages: Epoch::COPY,
            pages_armed: VecDeque::new(),
            disks: vec![Epoch::COPY; disks],
            handover: false,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> &StandbyState {
        &self.state
    }

    /// The last committed epoch.
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// Whether it may promote, given the arbiter's word.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Whether the primary has told this side to take over, as planned.
    pub fn is_handover(&self) -> bool {
        self.handover
    }

    /// Takes an event and appends what must be done to `out`. A violation has the effect of `Failed` as well.
    pub fn step(&mut self, event: StandbyEvent, out: &mut Vec<StandbyAction>) -> Result<(), Violation> {
        match (event, &self.state) {
            (StandbyEvent::PagesStaged { epoch, armed }, StandbyState::Following) => {
                let expected = self.pages.next();
                if epoch != expected {
                    return self.out_of_order("The memory", epoch, expected, out);
                }
                self.pages = epoch;
                self.pages_armed.push_back(armed);
                self.commit(out);
            }
            (StandbyEvent::DiskStaged { disk, epoch }, StandbyState::Following) => {
                let expected = self.disks.get(disk).map_or(Epoch::COPY, |e| e.next());
                if epoch != expected {
                    return self.out_of_order(&format!("Disk {disk}"), epoch, expected, out);
                }
                self.disks[disk] = epoch;
                self.commit(out);
            }
            // A guest that has shut down is not resurrected, not even when the arbiter gives it to this side. Any other
            // end is too late after a claim: it may be won already, and then nobody else may continue the guest.
            (StandbyEvent::End(reason @ EndReason::GuestShutDown), StandbyState::Resolving)
            | (StandbyEvent::End(reason), StandbyState::Following) => {
                self.state = StandbyState::Ended(Some(reason));
                out.push(StandbyAction::SendEndAck);
            }
            (StandbyEvent::Yield | StandbyEvent::PeerLost, StandbyState::Following) => {
                if self.armed {
                    self.state = StandbyState::Resolving;
                    out.push(StandbyAction::Claim);
                } else {
                    self.state = StandbyState::Ended(None);
                }
            }
            (StandbyEvent::HandOver, StandbyState::Following) => {
                if self.armed {
                    self.handover = true;
                    self.state = StandbyState::Resolving;
                    out.push(StandbyAction::Claim);
                } else {
                    self.fail("a handover needs a committed epoch".to_owned(), out);
                }
            }
            (StandbyEvent::Failed(why), StandbyState::Following | StandbyState::Resolving) => {
                self.fail(why, out);
            }
            (StandbyEvent::Verdict(verdict), StandbyState::Resolving) => match verdict {
                Verdict::Won => {
                    self.state = StandbyState::Active;
                    out.push(StandbyAction::TakeOver(self.committed));
                }
                Verdict::Lost => self.state = StandbyState::Ended(None),
                // After a handover, too, this side cannot give the guest back: its claim may have been heard.
                Verdict::Undecided => out.push(StandbyAction::Claim),
            },
            // What arrives after the decision no longer matters: nothing is acknowledged any more.
            _ => {}
        }
        Ok(())
    }

    /// Commits the epochs of which every part is here.
    fn commit(&mut self, out: &mut Vec<StandbyAction>) {
        let staged = self.disks.iter().copied().fold(self.pages, Epoch::min);
        while self.committed < staged {
            self.committed = self.committed.next();
            self.armed |= self.pages_armed.pop_front().unwrap_or(false);
            out.push(StandbyAction::Commit(self.committed));
            out.push(StandbyAction::Acknowledge(self.committed));
            out.push(StandbyAction::Apply(self.committed));
        }
    }

    fn out_of_order(
        &mut self,
        part: &str,
        got: Epoch,
        expected: Epoch,
        out: &mut Vec<StandbyAction>,
    ) -> Result<(), Violation> {
        let violation = Violation::Order { part: part.to_owned(), got, expected };
        self.fail(violation.to_string(), out);
        Err(violation)
    }

    fn fail(&mut self, why: String, out: &mut Vec<StandbyAction>) {
        self.state = StandbyState::Ended(None);
        self.armed = false;
        out.push(StandbyAction::SendFailed(why));
    }
}
