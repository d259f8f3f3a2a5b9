//! The configuration file: positions, validation, plugin tables.
//!
//! One TOML file serves both hosts:
//!
//! ```toml
//! name = "web"             # required; names files, so letters, digits, `.`, `_` and `-`
//! staging = "256MiB"
//! heartbeat = "50ms"
//! detection = "500ms"      # at least three heartbeats
//! audit = { every = 4000 } # in epochs; no audit unless given
//!
//! [plugins]
//! load = ["/path.so"]      # shared objects with more plugins
//! built_in = true          # whether the plugins in the program are known, too
//! unsafe_writable = false  # whether they may be files that others can change
//!
//! [guest]                  # required
//! plugin = "qemu"          # every other key of a plugin's table is the plugin's own
//!
//! [[network]]              # any number; `id` is net0, net1, … unless given
//! [[disk]]                 # any number; disk0, disk1, …
//! frontend = "nbd"         # or "vhost-user", which may have block_size = 4096: how the guest reaches it
//! [transport]              # required
//! [policy]                 # plugin = "fixed" unless given
//! [codec]                  # plugin = "raw" unless given
//! [arbiter]                # required
//! ```
//!
//! ```text
//!  bytes ─► text ─► table with positions ─► top-level keys ─┐
//!  file.rs          toml                    document.rs     │
//!                                           [plugins] ──────┼─► Config, or every problem found with its place
//!                                           shared.rs       │
//!                                           plugin tables ──┘
//!                                           plugin.rs: known? its own keys as text ─► PluginEntry::validate
//! ```
//! Loading touches nothing but the file and the shared objects that it names: no plugin is made, no address looked up.
#![forbid(unsafe_code)]

mod document;
mod file;
mod frontend;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod plugin;
mod report;
mod schema;
mod shared;

use aventine_api::{Kind, PluginEntry};
use shared::Registry;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use frontend::Frontend;
pub use report::{ConfigErrors, Report};
pub use schema::{plugin_schema, schema};

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
    /// Within how many epochs an audit compares every page of guest memory between the hosts; `None`: there is none.
    pub audit: Option<u32>,
    /// The guest.
    pub guest: Instance,
    /// Network buffers.
    pub networks: Vec<Instance>,
    /// Disks.
    pub disks: Vec<Instance>,
    /// How the guest reaches each of them.
    pub frontends: Vec<Frontend>,
    /// The transport.
    pub transport: Instance,
    /// The epoch policy.
    pub policy: Instance,
    /// The page codec.
    pub codec: Instance,
    /// The arbiter.
    pub arbiter: Instance,
}

impl Config {
    /// Loads and checks the file at `path`, and the shared objects that it names, which stay loaded. Blocks for the
    /// reading of the files.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        Config::read(&file::read(path)?, path, Registry::Changed)
    }

    /// Checks `text` as the contents of the file `path`, which is not touched. Neither are shared objects: only plugins
    /// that are there already are known.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
        Config::read(text, path, Registry::AsItIs)
    }

    fn read(text: &str, path: &Path, registry: Registry) -> Result<Config, ConfigErrors> {
        document::read(text, &file::directory(path), registry).map_err(|problems| {
            ConfigErrors::Invalid(Report::new(path.display().to_string(), text, problems))
        })
    }

    /// Every plugin that the configuration uses, in the order of the kinds.
    pub fn plugins(&self) -> impl Iterator<Item = (Kind, &Instance)> {
        std::iter::once((Kind::Guest, &self.guest))
            .chain(self.networks.iter().map(|i| (Kind::Network, i)))
            .chain(self.disks.iter().map(|i| (Kind::Disk, i)))
            .chain([
                (Kind::Transport, &self.transport),
                (Kind::Policy, &self.policy),
                (Kind::Codec, &self.codec),
                (Kind::Arbiter, &self.arbiter),
            ])
    }
}

/// Strategies to compare on a recorded guest:
///
/// ```toml
/// trace = "redis-set.trace"    # relative to this file
///
/// [plugins]                    # as in a configuration
/// load = ["fast_codec.so"]
///
/// [[policy]]                   # any number; one `fixed` if there is none
/// plugin = "fixed"
/// interval = "10ms"
///
/// [[codec]]                    # any number; one `raw` if there is none
/// plugin = "raw"
/// ```
#[derive(Clone)]
pub struct Strategies {
    /// What was recorded.
    pub trace: PathBuf,
    /// Directory of the file: relative paths are meant from here.
    pub dir: PathBuf,
    /// Epoch policies.
    pub policies: Vec<Instance>,
    /// Codecs.
    pub codecs: Vec<Instance>,
}

impl Strategies {
    /// Loads and checks the file at `path`. Blocks for the reading of the file.
    pub fn load(path: &Path) -> Result<Strategies, ConfigErrors> {
        let text = file::read(path)?;
        document::read_strategies(&text, &file::directory(path), Registry::Changed).map_err(|problems| {
            ConfigErrors::Invalid(Report::new(path.display().to_string(), &text, problems))
        })
    }
}

#[cfg(test)]
mod tests;
