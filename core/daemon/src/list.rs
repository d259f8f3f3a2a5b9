//! What a configuration uses, and which plugins there are.

use aventine_config::Config;
use serde::Serialize;

#[derive(Serialize)]
struct Plugin {
    kind: &'static str,
    name: &'static str,
    version: &'static str,
    origin: &'static str,
    summary: &'static str,
}

/// All plugins, a line each.
pub(crate) fn plugins(json: bool) -> String {
    let plugins: Vec<_> = aventine_registry::all()
        .into_iter()
        .map(|e| Plugin {
            kind: e.factory.kind().name(),
            name: e.name,
            version: e.version,
            origin: "built in",
            summary: e.summary,
        })
        .collect();
    let lines: Vec<_> = if json {
        plugins.iter().filter_map(|p| serde_json::to_string(p).ok()).collect()
    } else {
        let row = |k: &str, n: &str, v: &str, o: &str, s: &str| format!("{k:<10} {n:<14} {v:<8} {o:<9} {s}");
        std::iter::once(row("KIND", "NAME", "VERSION", "ORIGIN", "SUMMARY"))
            .chain(plugins.iter().map(|p| row(p.kind, p.name, p.version, p.origin, p.summary)))
            .collect()
    };
    lines.join("\n")
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
