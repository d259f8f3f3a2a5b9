//! The epoch loop: capture, staging, commit, failover.
//!
//! Start reading at `primary.rs` (`Loop::epoch` is a checkpoint from pause to hand-over) and `standby.rs`
//! (`Session::carry_out` is its other half). What is decided is decided in [`aventine_protocol`]; the plugins do the
//! work at the edges.
//!
//! | thread | primary | standby |
//! |---|---|---|
//! | loop | guest, epoch verbs, machine | guest, epoch verbs, machine |
//! | bulk | sender: encode, send | receiver: receive, check, stage |
//! | control | reader, heartbeat | reader, heartbeat |
//! | arbiter | claims | claims |

mod arbiter;
mod control;
mod link;
mod memory;
mod parts;
mod primary;
mod receiver;
mod sender;
mod silence;
mod staging;
mod stall;
mod standby;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

use aventine_config::Config;
use std::path::Path;

pub use arbiter::RecordError;
pub use control::{Command, Control, Inbox, Quantiles, Status, command_channel};
pub use link::HandshakeError;
pub use parts::PluginFailure;

/// How protecting a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectEnd {
    /// It was told to end before the guest ran.
    Stopped,
    /// It was told to end while a guest ran that is somebody else's, and that runs on.
    LetGo,
    /// The guest shut itself down, or was asked to by [`Command::PowerDown`] or [`Command::Kill`].
    GuestEnded,
    /// The standby owns the guest: this side's copy was ended.
    Fenced,
    /// The guest's process was lost here and the standby was told to take over.
    HandedOver,
}

/// Why protecting a guest could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
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

/// How a standby ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandbyEnd {
    /// It was told to end while it held no active guest.
    Stopped,
    /// It had taken over, and the guest ended.
    GuestEnded,
}

/// Why a standby could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginFailure),
    /// The guest's process was lost after the takeover.
    #[error("The guest's process is gone ({how}); it had been taken over and was not protected")]
    GuestLost {
        /// How it ended.
        how: String,
    },
}

/// Protects the guest of `config` until it ends: waits for the standby, starts the guest, copies it live, then makes
/// epochs. Blocks. The calling thread must be one that lives as long as the guest: a guest's process may be tied to it.
pub fn protect(config: &Config, state_dir: &Path, inbox: Inbox) -> Result<ProtectEnd, ProtectError> {
    inbox.introduce(&config.name, "primary");
    primary::protect(config, state_dir, inbox)
}

/// Stands by for the guest of `config`; after a takeover, runs it until it ends. Blocks; the same holds for the thread.
pub fn standby(config: &Config, state_dir: &Path, inbox: Inbox) -> Result<StandbyEnd, StandbyError> {
    inbox.introduce(&config.name, "standby");
    standby::standby(config, state_dir, inbox)
}
