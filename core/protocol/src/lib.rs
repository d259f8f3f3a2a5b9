//! Frames and state machines of the replication protocol: pure code without I/O, clock or unsafe.
//!
//! The [`Primary`] and the [`Standby`] decide everything that the promises depend on; the engine feeds them events
//! and carries out the actions they answer with. The same machines run in tests under every order of events.
//!
//! | promise | decided by |
//! |---|---|
//! | output commit | [`Primary`]: `Release(n)` comes from the acknowledgement of n alone; [`Standby`]: `Acknowledge(n)` follows `Commit(n)` |
//! | one epoch number | [`Primary::seal`] hands it out; [`Standby`] commits n only when every part says n |
//! | all or nothing | [`Standby`]: `TakeOver` names the last committed epoch, and never after a failed apply |
//! | one owner | both: no `TakeOver`, no `Disengage(Owner)` of an armed guest without `Verdict::Won` or the other side's renunciation |
//! | an ending has a reason | [`EndReason`]; the end of a stream is [`PrimaryEvent::LinkLost`] or [`StandbyEvent::PeerLost`] and leads to the arbiter |
//! | never frozen, never muted | every path out of `Protected` ends in a `Disengage` |
//! | nothing silent | whatever does not fit is a [`Violation`] and ends protection |
#![forbid(unsafe_code)]

mod audit;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod message;
mod primary;
mod standby;

pub use audit::{AUDIT_NAMED, AUDIT_PAGES, AuditRecord};
pub use frame::{FrameError, FrameHeader, FrameKind, HEADER_LEN, PayloadHash, VERSION};
pub use message::{Base, CheckpointEnd, Hello, Message, MessageError, differences};
pub use primary::{Primary, PrimaryAction, PrimaryEvent, PrimaryState};
pub use standby::{Standby, StandbyAction, StandbyEvent, StandbyState};

use aventine_api::Epoch;

/// Why protection ends, as one side tells the other. Each reason leaves the guest with a known owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// An operator stopped protection; the guest runs on at the primary.
    Stopped,
    /// The guest shut itself down, or was asked to.
    GuestShutDown,
    /// The primary can no longer replicate; the guest runs on there.
    LocalError(String),
}

/// The other side, or this one, did what the protocol forbids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An acknowledgement that does not follow the last one or was never sealed.
    #[error(
        "Epoch {got} was acknowledged, but {acknowledged} is the last acknowledged and {sealed} the last sealed epoch"
    )]
    Acknowledgement {
        /// The epoch in the acknowledgement.
        got: Epoch,
        /// The last acknowledged before.
        acknowledged: Epoch,
        /// The last sealed.
        sealed: Epoch,
    },
    /// A part of a checkpoint arrived out of order.
    #[error("{part} is complete for epoch {got}, but epoch {expected} comes next")]
    Order {
        /// Which part.
        part: String,
        /// The epoch that arrived.
        got: Epoch,
        /// The one expected.
        expected: Epoch,
    },
    /// A seal when none is allowed.
    #[error("No epoch can be sealed now")]
    Seal,
}
