//! How a plugin is reached, for benches that serve all forms of it.

use aventine_api::{Context, Epoch, Host, Kind, PluginEntry, PluginError, Side, inventory};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// One way to a plugin: linked in, behind an adapter, loaded. A bench that makes its plugin through a form serves every one.
pub trait Form: 'static {
    /// The plugin's entry in this form.
    ///
    /// # Panics
    /// Where there is no such plugin.
    fn entry(kind: Kind, name: &str) -> &'static PluginEntry;
}

/// The plugin that is linked into this program.
pub struct Native;

impl Form for Native {
    fn entry(kind: Kind, name: &str) -> &'static PluginEntry {
        let mut entries = inventory::iter::<PluginEntry>.into_iter();
        let found = entries.find(|e| e.factory.kind() == kind && e.name == name);
        found.unwrap_or_else(|| panic!("no {kind} plugin {name} is linked in"))
    }
}

/// The engine's side of a plugin: keeps what is reported as failed.
#[derive(Default)]
pub struct Ears(Mutex<Option<String>>);

impl Ears {
    /// The last failure that was reported, with its causes.
    pub fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Host for Ears {
    fn request_epoch(&self) {}

    fn staged(&self, _: Epoch) {}

    fn failed(&self, error: PluginError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.chain());
    }
}

/// What a plugin gets at creation, with all of its files in `dir`.
pub fn context(kind: Kind, dir: &Path, side: Side, host: Arc<dyn Host>) -> Context {
    Context {
        guest: "conformance".into(),
        id: kind.name().into(),
        side,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host,
    }
}
