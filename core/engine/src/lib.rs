//! The epoch loop: capture, staging, commit, failover.

mod control;

use aventine_api::PluginError;
use aventine_config::Config;
use std::path::Path;

pub use control::{Command, Control, Floor, Inbox, Quantiles, Status, command_channel};

/// How protecting a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectEnd {
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
    #[error("Plugin {id} failed while {doing}")]
    Plugin {
        /// Which one.
        id: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: PluginError,
    },
    /// The standby refused.
    #[error("The standby refused: {reason}")]
    Refused {
        /// The standby's words.
        reason: String,
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
    #[error("Plugin {id} failed while {doing}")]
    Plugin {
        /// Which one.
        id: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: PluginError,
    },
}

/// Protects the guest of `config` until it ends. Blocks; runs on the calling thread.
pub fn protect(_config: &Config, _state_dir: &Path, _inbox: Inbox) -> Result<ProtectEnd, ProtectError> {
    Ok(ProtectEnd::GuestEnded)
}

/// Stands by for the guest of `config`; after a takeover, runs it until it ends. Blocks; runs on the calling thread.
pub fn standby(_config: &Config, _state_dir: &Path, _inbox: Inbox) -> Result<StandbyEnd, StandbyError> {
    Ok(StandbyEnd::Stopped)
}
