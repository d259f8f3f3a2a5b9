use crate::{Epoch, PluginError};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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

    /// The engine's clock: time since a moment before the plugin was made. Never goes back. In a replay it is the
    /// recorded guest's time, so a plugin that asks it, and not the system, does there what it would have done.
    fn now(&self) -> Duration {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        BEGAN.get_or_init(Instant::now).elapsed()
    }

    /// Registers a figure of the plugin's own, which `aventine status` shows beside the plugin's id. `name` is made of
    /// lower-case letters, digits and `_`, at most 48, and ends with its unit (`ring_bytes`, `fsync_us`, `lost_total`);
    /// `help` says in one line what it counts. The same name again gives the same metric. What the engine cannot
    /// register (another name, more than 64 of one plugin's) is logged, and its values go nowhere. Not for the pause;
    /// the metric itself is.
    fn metric(&self, name: &str, help: &str) -> Arc<dyn Metric> {
        let _ = (name, help);
        Arc::new(Discarded)
    }
}

/// A figure of a plugin's; begins at zero. No call blocks or allocates, on any thread.
pub trait Metric: Send + Sync {
    /// Replaces the value.
    fn set(&self, value: u64);

    /// Adds to the value; wraps around.
    fn add(&self, more: u64);
}

/// A metric of a host that shows none.
struct Discarded;

impl Metric for Discarded {
    fn set(&self, _: u64) {}

    fn add(&self, _: u64) {}
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
