//! The rules of a guest, on the plugin as it is built in.

use crate::bench::{Counting, Form};
use crate::lab::entry;
use aventine_api::PluginEntry;

struct BuiltIn;

impl Form for BuiltIn {
    fn entry() -> &'static PluginEntry {
        entry()
    }
}

aventine_conformance::guest!(Counting<BuiltIn>);
