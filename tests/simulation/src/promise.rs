//! The seven promises, as the names under which a violation is reported.

use std::fmt;

/// A promise of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// No frame leaves before the standby's acknowledgement of its epoch was received.
    OutputCommit = 1,
    /// Memory, device state, disks, seals, acknowledgements and releases carry the same number.
    OneEpochNumber,
    /// Failover resumes the last committed epoch, exactly.
    AllOrNothing,
    /// Neither side promotes or goes on alone without winning the arbiter.
    OneOwner,
    /// Only the loss of the primary promotes the standby; every other ending is told, and told apart.
    AnEndingHasAReason,
    /// A guest that still owns its identity runs and talks again.
    NeverFrozenNeverMuted,
    /// What is lost stops protection loudly.
    NothingSilent,
}

impl Promise {
    /// All of them, in order.
    pub const ALL: [Promise; 7] = [
        Promise::OutputCommit,
        Promise::OneEpochNumber,
        Promise::AllOrNothing,
        Promise::OneOwner,
        Promise::AnEndingHasAReason,
        Promise::NeverFrozenNeverMuted,
        Promise::NothingSilent,
    ];
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Promise::OutputCommit => "output commit",
            Promise::OneEpochNumber => "one epoch number",
            Promise::AllOrNothing => "all or nothing",
            Promise::OneOwner => "one owner",
            Promise::AnEndingHasAReason => "an ending has a reason",
            Promise::NeverFrozenNeverMuted => "never frozen, never muted",
            Promise::NothingSilent => "nothing silent",
        };
        write!(f, "promise {} ({name})", *self as u8)
    }
}

/// A promise that did not hold, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub promise: Promise,
    /// What happened.
    pub what: String,
}
