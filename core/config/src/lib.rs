//! The configuration file: positions, validation, plugin tables.
#![forbid(unsafe_code)]

use aventine_api::PluginEntry;
use std::path::PathBuf;
use std::time::Duration;

/// One plugin named by the configuration, with its own validated text.
#[derive(Clone)]
pub struct Instance {
    /// `id` of the table: what the other plugins and the status call it.
    pub id: String,
    /// The plugin.
    pub entry: &'static PluginEntry,
    /// Its own keys as TOML text.
    pub config: String,
}

/// A whole, validated configuration: every plugin is known and has accepted its keys.
#[derive(Clone)]
pub struct Config {
    /// Name of the guest.
    pub name: String,
    /// Directory of the configuration file: relative paths are meant from here.
    pub dir: PathBuf,
    /// Most memory, in bytes, that captured pages may take on the primary and uncommitted ones on the standby.
    pub staging: u64,
    /// How often each side says that it is alive.
    pub heartbeat: Duration,
    /// How long the other side may be silent before it counts as lost.
    pub detection: Duration,
    /// The guest.
    pub guest: Instance,
    /// Network buffers.
    pub networks: Vec<Instance>,
    /// Disks.
    pub disks: Vec<Instance>,
    /// The transport.
    pub transport: Instance,
    /// The epoch policy.
    pub policy: Instance,
    /// The page codec.
    pub codec: Instance,
    /// The arbiter.
    pub arbiter: Instance,
}
