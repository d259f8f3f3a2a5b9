use crate::{Epoch, PluginError};
use std::path::PathBuf;
use std::sync::Arc;

/// Which of the two hosts this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// Runs the guest.
    Primary = 1,
    /// Keeps its checkpoints.
    Standby = 2,
}

impl Side {
    /// The other host.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Primary => Side::Standby,
            Side::Standby => Side::Primary,
        }
    }

    /// `primary` or `standby`.
    pub fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Standby => "standby",
        }
    }
}

/// What a plugin may ask of the engine, from any thread. No call blocks.
pub trait Host: Send + Sync {
    /// Primary: asks for the next epoch to end now, because a buffer is getting full.
    fn request_epoch(&self);

    /// Standby: the disk of this context holds every write of `epoch`, complete and checked.
    fn staged(&self, epoch: Epoch);

    /// Something failed on the plugin's own thread. Protection ends in the way defined for the plugin's kind.
    fn failed(&self, error: PluginError);
}

/// What every plugin gets at creation.
#[derive(Clone)]
pub struct Context {
    /// Name of the guest, from the configuration.
    pub guest: String,
    /// The `id` of the plugin's own table (`net0`, `disk0`; the kind's name where there can be one only).
    pub id: String,
    /// The side this process plays at its start.
    pub side: Side,
    /// A directory for sockets and records of this guest and side, private to the user, existing.
    pub state_dir: PathBuf,
    /// Relative paths of the configuration are meant from here: the directory of the configuration file.
    pub config_dir: PathBuf,
    /// The engine.
    pub host: Arc<dyn Host>,
}
