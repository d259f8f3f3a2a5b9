use crate::{Kind, PluginError};
use std::path::PathBuf;

/// What a plugin can do on a host without being made: for plugins that need something of the machine, or could leave
/// something behind in it that outlives their process. Registered with [`inventory::submit!`] beside the
/// [`PluginEntry`](crate::PluginEntry) of the same kind and name; a plugin without it needs and leaves nothing.
pub struct Upkeep {
    /// The plugin's kind.
    pub kind: Kind,
    /// The plugin's name.
    pub name: &'static str,
    /// What keeps the plugin from working on this host: for each thing a sentence that says how to get it, or out of
    /// the way. Changes nothing that others could notice; may have the kernel load modules. The guest may be running
    /// here. Blocks for some milliseconds.
    pub probe: fn(config: &str, premises: &Premises) -> Vec<String>,
    /// Removes what a process that is gone has left of this guest, and tells what that was, each thing after "removed". What
    /// belongs to others is not touched. The guest does not run here. Blocks for as long as it takes. Idempotent.
    pub reclaim: fn(config: &str, premises: &Premises) -> Result<Vec<String>, PluginError>,
}

inventory::collect!(Upkeep);

/// For whom the upkeep is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Premises {
    /// Name of the guest, from the configuration.
    pub guest: String,
    /// The `id` of the plugin's own table.
    pub id: String,
    /// Relative paths of the configuration are meant from here.
    pub config_dir: PathBuf,
}
