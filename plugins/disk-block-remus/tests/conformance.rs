//! The rules of a disk, on the plugin as it is built in.

#[path = "../testing/bench.rs"]
mod bench;

use aventine_api::{PluginEntry, inventory};
use aventine_disk_block_remus as _;
use bench::{Files, Form};

struct BuiltIn;

impl Form for BuiltIn {
    fn entry() -> &'static PluginEntry {
        inventory::iter::<PluginEntry>().find(|e| e.name == "block-remus").expect("the plugin is linked in")
    }
}

aventine_conformance::disk!(Files<BuiltIn>);
