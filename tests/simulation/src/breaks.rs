//! Deliberate breaks: mistakes that an implementation could make, each found by the simulation under the promise that
//! it breaks.
//!
//! The machines stay as they are. A break alters what goes into a machine, what comes out of it, or how the model of the
//! engine, the buffers, the disks or the arbiter carries it out. So no code that ships knows of them.

use crate::guest::DISKS;
use crate::promise::Promise;
use aventine_api::{Disengage, Epoch, Verdict};
use aventine_protocol::{
    EndReason, Primary, PrimaryAction, PrimaryEvent, Standby, StandbyAction, StandbyEvent, StandbyState,
};

macro_rules! breaks {
    ($($promise:ident { $($(#[doc = $doc:literal])+ $name:ident,)+ })+) => {
        /// A deliberate break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Break { $($($(#[doc = $doc])+ $name,)+)+ }

        impl Break {
            /// All of them, in the order of the promises.
            pub const ALL: &[Break] = &[$($(Break::$name,)+)+];

            /// The promise that it breaks.
            pub fn promise(self) -> Promise {
                match self { $($(Break::$name)|+ => Promise::$promise,)+ }
            }
        }
    };
}

breaks! {
    OutputCommit {
        /// Output is released once a checkpoint is sent.
        ReleaseWhenSent,
        /// A release lets the epoch after it out as well.
        ReleaseOneTooMany,
        /// The buffers never begin to hold.
        EngageForgotten,
        /// The standby acknowledges what it has not committed.
        AcknowledgeWhenPagesArrive,
    }
    OneEpochNumber {
        /// The standby commits without waiting for its disks.
        CommitWithoutDisks,
        /// The standby's disks take writes as they arrive.
        DisksApplyOnArrival,
        /// A disk is sealed after the guest runs again.
        DiskSealedAfterResume,
    }
    AllOrNothing {
        /// The standby promotes from what it has staged, committed or not.
        TakeOverStaged,
        /// The pages of an epoch go straight into the memory image.
        PagesApplyOnArrival,
        /// An application that failed is not reported.
        FailedApplyIgnored,
        /// What is committed and not applied is dropped when the primary is lost.
        InterruptedApplyDropped,
    }
    OneOwner {
        /// The standby does not care what the arbiter says.
        StandbyIgnoresVerdict,
        /// The primary does not care what the arbiter says.
        PrimaryIgnoresVerdict,
        /// An arbiter that says nothing is taken for a yes.
        UndecidedIsWon,
        /// A verdict on an earlier session is taken for one on this session.
        VerdictOfEarlierSession,
        /// The end of a stream is proof enough for the standby.
        EndOfStreamIsProofForStandby,
        /// The end of a stream is proof enough for the primary.
        EndOfStreamIsProofForPrimary,
        /// A primary that comes back runs the guest without asking.
        RestartWithoutSettling,
        /// A guest that belongs to the other side is left running.
        FencedGuestLeftRunning,
        /// The arbiter sets without testing.
        ArbiterForgets,
        /// A guest runs on after the last epoch of a handover.
        HandedOverGuestRunsOn,
    }
    AnEndingHasAReason {
        /// The standby takes the end of protection for the loss of the primary.
        EndIsLoss,
        /// Every end is told as a stop.
        ReasonLost,
        /// A guest that shuts down is taken for a guest that is lost.
        ShutDownIsLoss,
        /// The standby does not tell a waiting claim that the guest has shut down.
        ShutDownUnheardWhileResolving,
    }
    NeverFrozenNeverMuted {
        /// A primary that goes on alone keeps holding.
        DisengageForgotten,
        /// An arbiter that could not be asked is not asked again.
        AskedOnlyOnce,
        /// The primary never notices that the link is lost.
        PrimaryNeverNotices,
        /// The standby never notices that the primary is lost.
        StandbyNeverNotices,
        /// A side that takes the other for lost keeps saying that it is alive.
        HeartbeatGoesOn,
        /// A handover that failed leaves the guest paused.
        HandoverLeavesGuestPaused,
        /// A primary that wins ends the guest.
        WinnerKillsGuest,
        /// A primary that waits for the arbiter does not listen to the standby's renunciation.
        RenunciationUnheardWhileResolving,
    }
    NothingSilent {
        /// A dirty page is lost.
        DirtyPageLost,
        /// A write to a disk is not replicated.
        WriteNotReplicated,
        /// The network buffer drops a frame.
        FrameDropped,
        /// A frame that is missing in a stream is not noticed.
        GapUnnoticed,
    }
}

impl Break {
    /// The standby's machine.
    pub(crate) fn standby(plant: Option<Break>) -> Standby {
        Standby::new(if plant == Some(Break::CommitWithoutDisks) { 0 } else { DISKS })
    }

    /// What the primary's machine gets instead of `event`.
    pub(crate) fn primary_event(self, event: PrimaryEvent) -> Option<PrimaryEvent> {
        use PrimaryEvent as E;
        Some(match (self, event) {
            (Break::PrimaryIgnoresVerdict, E::Verdict(_)) => E::Verdict(Verdict::Won),
            (Break::UndecidedIsWon, E::Verdict(Verdict::Undecided)) => E::Verdict(Verdict::Won),
            (Break::AskedOnlyOnce, E::Verdict(Verdict::Undecided)) => return None,
            (Break::ShutDownIsLoss, E::End(EndReason::GuestShutDown)) => E::GuestLost,
            (Break::PrimaryNeverNotices, E::LinkLost) => return None,
            (_, event) => event,
        })
    }

    /// What the primary does instead of `actions`.
    pub(crate) fn primary_actions(self, machine: &Primary, actions: &mut Vec<PrimaryAction>) {
        use PrimaryAction as A;
        match self {
            Break::EngageForgotten => actions.retain(|a| *a != A::Engage),
            Break::DisengageForgotten => actions.retain(|a| *a != A::Disengage(Disengage::Owner)),
            Break::FencedGuestLeftRunning => actions.retain(|a| *a != A::KillGuest),
            Break::ReleaseOneTooMany => {
                for action in actions {
                    if let A::Release(epoch) = action {
                        *epoch = epoch.next();
                    }
                }
            }
            Break::EndOfStreamIsProofForPrimary => {
                for action in actions {
                    if *action == A::Claim {
                        *action = A::Disengage(Disengage::Owner);
                    }
                }
            }
            Break::WinnerKillsGuest => {
                let owner = |a: &A| *a == A::Disengage(Disengage::Owner);
                if actions.iter().any(owner) && machine.acknowledged() > Epoch::FIRST {
                    actions.push(A::KillGuest);
                }
            }
            Break::ReasonLost => {
                for action in actions {
                    if let A::SendEnd(reason) = action {
                        *reason = EndReason::Stopped;
                    }
                }
            }
            _ => {}
        }
    }

    /// What the standby's machine gets instead of `event`.
    pub(crate) fn standby_event(self, event: StandbyEvent, state: &StandbyState) -> Option<StandbyEvent> {
        use StandbyEvent as E;
        Some(match (self, event) {
            (Break::StandbyIgnoresVerdict, E::Verdict(_)) => E::Verdict(Verdict::Won),
            (Break::UndecidedIsWon, E::Verdict(Verdict::Undecided)) => E::Verdict(Verdict::Won),
            (Break::EndIsLoss, E::End(_)) => E::PeerLost,
            (Break::CommitWithoutDisks, E::DiskStaged { .. }) => return None,
            (Break::ShutDownUnheardWhileResolving, E::End(_)) if *state == StandbyState::Resolving => {
                return None;
            }
            (Break::StandbyNeverNotices, E::PeerLost | E::Yield) => return None,
            (_, event) => event,
        })
    }

    /// What the standby does instead of `actions`.
    pub(crate) fn standby_actions(self, machine: &Standby, staged: Epoch, actions: &mut [StandbyAction]) {
        use StandbyAction as A;
        for action in actions {
            match (self, &*action) {
                (Break::TakeOverStaged, A::TakeOver(_)) => *action = A::TakeOver(staged),
                (Break::EndOfStreamIsProofForStandby, A::Claim) => *action = A::TakeOver(machine.committed()),
                _ => {}
            }
        }
    }
}
