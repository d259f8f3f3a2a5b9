//! What a configuration uses, and which plugins there are.

use aventine_api::PluginEntry;
use aventine_config::Config;
use aventine_registry::{LoadError, Origin, Trust};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Plugin {
    kind: &'static str,
    name: &'static str,
    version: &'static str,
    origin: String,
    summary: &'static str,
}

impl Plugin {
    fn new(entry: &'static PluginEntry, origin: &Origin) -> Plugin {
        Plugin {
            kind: entry.factory.kind().name(),
            name: entry.name,
            version: entry.version,
            origin: origin.to_string(),
            summary: entry.summary,
        }
    }
}

/// All plugins, a line each.
pub(crate) fn plugins(json: bool) -> String {
    let known = aventine_registry::known();
    table(&known.iter().map(|k| Plugin::new(k.entry, &k.origin)).collect::<Vec<_>>(), json)
}

fn table(plugins: &[Plugin], json: bool) -> String {
    let lines: Vec<_> = if json {
        plugins.iter().filter_map(|p| serde_json::to_string(p).ok()).collect()
    } else {
        let widest = plugins.iter().map(|p| p.origin.chars().count()).max().unwrap_or_default().max(9);
        let row =
            |k: &str, n: &str, v: &str, o: &str, s: &str| format!("{k:<10} {n:<14} {v:<8} {o:<widest$} {s}");
        std::iter::once(row("KIND", "NAME", "VERSION", "ORIGIN", "SUMMARY"))
            .chain(plugins.iter().map(|p| row(p.kind, p.name, p.version, &p.origin, p.summary)))
            .collect()
    };
    lines.join("\n")
}

/// What is in a shared object: what its file says, then its plugins, for which it is loaded.
pub(crate) fn inspect(file: &Path, json: bool) -> Result<String, LoadError> {
    let about = aventine_registry::about(file, Trust::OwnersOnly)?;
    let (origin, entries) = aventine_registry::inspect(file, Trust::OwnersOnly)?;
    let plugins: Vec<_> = entries.into_iter().map(|entry| Plugin::new(entry, &origin)).collect();
    let plugins = table(&plugins, json);
    Ok(if json { plugins } else { format!("{}, plugin interface {}\n{plugins}", about.build, about.abi) })
}

/// What a valid configuration sets up.
pub(crate) fn summary(config: &Config) -> String {
    let Config { name, staging, heartbeat, detection, .. } = config;
    let mut lines = vec![format!("  {:<12} {name}", "name")];
    for (kind, instance) in config.plugins() {
        let (id, plugin) = (&instance.id, instance.entry.name);
        let id = if id == kind.name() { String::new() } else { format!(" ({id})") };
        lines.push(format!("  {:<12} {plugin}{id}", kind.name()));
    }
    lines.push(format!("  {:<12} {} MiB", "staging", staging >> 20));
    lines.push(format!("  {:<12} {heartbeat:?}, lost after {detection:?}", "heartbeat"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use aventine_api::Kind;

    #[test]
    fn every_built_in_is_linked_in() {
        let names: Vec<_> = aventine_registry::all().iter().map(|e| (e.factory.kind(), e.name)).collect();
        for built_in in [
            (Kind::Guest, "qemu"),
            (Kind::Network, "userspace"),
            (Kind::Disk, "block-remus"),
            (Kind::Disk, "drbd"),
            (Kind::Transport, "tcp"),
            (Kind::Policy, "fixed"),
            (Kind::Codec, "raw"),
            (Kind::Arbiter, "shared-file"),
            (Kind::Arbiter, "manual"),
            (Kind::Arbiter, "etcd"),
            (Kind::Arbiter, "command"),
        ] {
            assert_eq!(names.iter().filter(|n| **n == built_in).count(), 1, "{built_in:?} in {names:?}");
        }
    }
}
