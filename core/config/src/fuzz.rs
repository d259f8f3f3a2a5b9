//! Fuzz targets; see `tests/fuzz`. They use the plugins that are linked in: those of the program in `tests/fuzz`, those
//! of the tests here.

use crate::Config;
use crate::plugin::{ID_LENGTH, is_file_name};
use std::path::Path;

/// A whole configuration. What is accepted is accepted by each plugin; what is not is told without anything that
/// could talk to the terminal.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("/etc/aventine/fuzz.toml")) {
        Ok(config) => {
            assert!(is_file_name(&config.name, 48));
            assert!(config.detection >= 3 * config.heartbeat);
            for (_, instance) in config.plugins() {
                assert!(is_file_name(&instance.id, ID_LENGTH), "{}", instance.id);
                (instance.entry.validate)(&instance.config).expect("what was accepted is accepted again");
            }
        }
        Err(errors) => {
            let told = errors.to_string();
            assert!(told.contains("fuzz.toml"));
            assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
        }
    }
}

/// The text that one plugin gets: which plugin, then the text.
pub fn validate(data: &[u8]) {
    let entries = aventine_registry::all();
    let Some((&which, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let entry = entries[usize::from(which) % entries.len()];
    if let Err(error) = (entry.validate)(text) {
        assert!(!error.to_string().is_empty());
        assert_eq!((entry.validate)(text), Err(error), "it is pure");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    #[test]
    fn configurations_are_accepted_by_all_or_explained() {
        let example = include_str!("../../../examples/two-hosts.toml");
        let plain =
            example.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect::<String>();
        let small = "name = 'w'\nheartbeat = '1ms'\n[guest]\nplugin = 'qemu'\ncommand = ['qemu', '-m', '2G']\n[transport]\n\
                     plugin = 'tcp'\nunsafe_plaintext = true\n[arbiter]\nplugin = 'manual'\n";
        let wrong = "name = \"\u{1b}[31m\"\nstaging = 7\ndetectoin = '1s'\nguest = []\n[[disk]]\nplugin = 'block-remus'\n\
                     spec = 'remus:[::1]:9000|aio:/x'\nbuffer = '1 MiB'\n[[network]]\nuplink = { tap = 'x', y.z = [{}] }\n";
        let seeds = [
            ("two-hosts", plain.into_bytes()),
            ("small", small.into()),
            ("wrong", wrong.into()),
            ("control", "name\u{9b}31m = \"\u{9b}2J\u{1b}[31m\"".into()),
            ("syntax", b"a = { b = [1, 2\n[[c]\nd = 1979-05-27T07:32:00Z".to_vec()),
        ];
        replay("config", &seeds, config);
    }

    #[test]
    fn plugins_explain_what_they_do_not_accept() {
        let texts = [
            ("shared-file", "path = '/mnt/witness'"),
            ("manual", "decision = 'd'"),
            ("raw", ""),
            ("block-remus", "spec = 'remus:standby:9000|aio:/w.img'\nbuffer = '256MiB'"),
            ("block-remus-image", "image = '/w.img'\ndurable = 'memory'"),
            ("qemu", "command = ['qemu', '-m', 'size=2G,slots=2', '-object', 'memory-backend-ram,id=x']"),
            ("userspace", "uplink = { tap = 'tap0' }\nlimit = '64MiB'"),
            ("fixed", "interval = '25ms'"),
            (
                "tcp",
                "listen = '0.0.0.0:7400'\npeer = '[::1]:1'\ntls = { ca = 'c', cert = 'd', key = 'e', nodes = ['a'] }",
            ),
        ];
        let seeds = texts.iter().zip(0..);
        let seeds = seeds.map(|((name, text), n)| (*name, [&[n][..], text.as_bytes()].concat()));
        replay("validate", &seeds.collect::<Vec<_>>(), validate);
    }
}
