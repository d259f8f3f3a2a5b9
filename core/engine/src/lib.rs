//! The epoch loop: capture, staging, commit, failover.
//!
//! Start reading at `primary.rs` (`Loop::epoch` is a checkpoint from pause to hand-over) and `standby.rs`
//! (`Session::carry_out` is its other half); `roles.rs` tells how one becomes the other. What is decided is decided in [`aventine_protocol`]; the plugins do the
//! work at the edges.
//!
//! | thread | primary | standby |
//! |---|---|---|
//! | loop | guest, epoch verbs, machine | guest, epoch verbs, machine |
//! | bulk | sender: encode, send | receiver: receive, check, stage |
//! | control | reader, heartbeat | reader, heartbeat |
//! | arbiter | claims | claims |
//! | audit | hashes guest memory, if it is configured | (the loop compares) |
//!
//! The stages of successive epochs overlap; each row is a thread, and [`Status`] has the time of each stage:
//! ```text
//!  primary  loop      capture 1 ─┐  capture 2 ─┐          capture 3 ─┐   release 1
//!           sender               └ encode, send 1 ═══╗ └ encode, send 2 ═══╗ └ encode, send 3 ═══╗
//!  standby  receiver                 receive, check 1 ╝    receive, check 2 ╝    receive, check 3 ╝
//!           loop                                      commit, ack, apply 1  commit, ack, apply 2
//! ```
//! A stage hands over and goes on; it waits only where the next one has all it may hold: the loop's capture for staging memory,
//! an epoch's end for the sender (`primary.rs` tells of this back-pressure), the receiver for checkpoints to be applied. Disks
//! and networks send on channels and threads of their own while the epoch is open.

mod arbiter;
mod audit;
mod bytes;
mod control;
mod door;
mod feed;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod link;
mod memory;
mod metrics;
mod parts;
mod primary;
mod receiver;
mod reclaim;
mod recording;
mod roles;
mod sender;
mod silence;
mod staging;
mod stall;
mod standby;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

use aventine_api::Side;
use aventine_config::Config;
use std::path::Path;

pub use arbiter::RecordError;
pub use control::{
    AuditStatus, Command, Control, Inbox, Quantiles, Status, VerificationStatus, command_channel,
};
pub use feed::{Fed, FeedError, Recorded, RecordedFrame, RecordedFrames, RecordingError, feed};
pub use link::HandshakeError;
pub use metrics::MetricStatus;
pub use parts::PluginFailure;
pub use reclaim::{ReclaimError, Reclaimed, Settled, reclaim};

/// How an engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to end while no guest ran here.
    Stopped,
    /// It was told to end while a guest ran that is somebody else's, and that runs on.
    LetGo,
    /// The guest shut itself down, or was asked to by [`Command::PowerDown`] or [`Command::Kill`].
    GuestEnded,
}

/// Why an engine could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginFailure),
    /// The standby refused.
    #[error("The standby refused: {reason}")]
    Refused {
        /// The standby's words.
        reason: String,
    },
    /// The two sides could not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// An earlier session is not settled.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The guest's process was lost while no standby could take over.
    #[error("The guest's process is gone ({how}), and it was not protected at that moment")]
    GuestLost {
        /// How it ended.
        how: String,
    },
}

/// Plays `side` for the guest of `config`, and whatever role follows from it, until the guest has ended or the operator
/// wants it. The primary waits for a standby, starts the guest, copies it live, then makes epochs. The standby follows a
/// primary, and becomes one when it takes over. Blocks. The calling thread must be one that lives as long as the guest: a
/// guest's process may be tied to it.
///
/// `state_dir` is the guest's own on this host: the record that it keeps there must be found by the next start, in
/// whichever role.
pub fn run(config: &Config, state_dir: &Path, inbox: &Inbox, side: Side) -> Result<End, EngineError> {
    roles::play(&roles::Stage { config, state_dir, inbox }, side)
}
