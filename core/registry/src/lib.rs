//! The plugin registry: every plugin the program knows, by kind and name.
#![forbid(unsafe_code)]

use aventine_api::{Kind, PluginEntry, Upkeep};

/// All plugins, sorted by kind and name (the order of registration is undefined).
pub fn all() -> Vec<&'static PluginEntry> {
    let mut entries: Vec<_> = inventory::iter::<PluginEntry>.into_iter().collect();
    entries.sort_by_key(|e| (e.factory.kind(), e.name));
    entries
}

/// The plugin of this kind and name.
pub fn find(kind: Kind, name: &str) -> Option<&'static PluginEntry> {
    all().into_iter().find(|e| e.factory.kind() == kind && e.name == name)
}

/// The names known for a kind, sorted.
pub fn names(kind: Kind) -> Vec<&'static str> {
    all().into_iter().filter(|e| e.factory.kind() == kind).map(|e| e.name).collect()
}

/// What the plugin of this kind and name can do on a host without being made, if anything.
pub fn upkeep(kind: Kind, name: &str) -> Option<&'static Upkeep> {
    inventory::iter::<Upkeep>.into_iter().find(|u| u.kind == kind && u.name == name)
}
