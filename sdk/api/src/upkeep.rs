use crate::PluginError;
use std::path::PathBuf;

/// Says what keeps a plugin from working on this host: for each thing a sentence that says how to get it, or out of the
/// way. Given the plugin's configuration text. Changes nothing that others could notice; may have the kernel load modules.
/// The guest may be running here. Blocks for some milliseconds.
type Probe = &'static (dyn Fn(&str, &Premises) -> Vec<String> + Send + Sync);

/// Removes what a process that is gone has left of this guest, and tells what that was, each thing after "removed". What
/// belongs to others is not touched. The guest does not run here. Blocks for as long as it takes. Idempotent.
type Reclaim = &'static (dyn Fn(&str, &Premises) -> Result<Vec<String>, PluginError> + Send + Sync);

/// What a plugin can do on a host without being made: for plugins that need something of the machine, or could leave
/// something behind in it that outlives their process.
#[derive(Clone, Copy)]
pub struct Upkeep {
    /// For `aventine check --environment`.
    pub probe: Probe,
    /// For `aventine reclaim` and the next start.
    pub reclaim: Reclaim,
}

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
