//! The plugin's own keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::ops::RangeInclusive;

/// Bytes that writes may take in memory where the configuration does not say.
const DEFAULT_BUFFER: u64 = 256 << 20;
/// The least lets the largest request of a guest pass without stopping at each.
const BUFFER_RANGE: RangeInclusive<u64> = 16 << 20..=1 << 40;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Keys {
    /// The DRBD resource, of one volume; the same on both hosts.
    resource: String,
    /// What the other side calls it; the same if not set. For two sides on one host, such as a benchmark's.
    peer_resource: Option<String>,
    /// Memory for writes that DRBD does not have on both sides, the same on both hosts; 256MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    buffer: Option<String>,
}

/// The checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) resource: String,
    /// Its name on the other side.
    pub(crate) peer_resource: String,
    /// Bytes that writes may take in memory, on each side.
    pub(crate) buffer: usize,
}

/// Reads the plugin's configuration text.
pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let buffer =
        keys.buffer.map_or(Ok(DEFAULT_BUFFER), |text| u64::parse_key(&["buffer"], &text, &BUFFER_RANGE))?;
    check_name("resource", &keys.resource)?;
    let peer_resource = keys.peer_resource.unwrap_or_else(|| keys.resource.clone());
    check_name("peer_resource", &peer_resource)?;
    Ok(Settings { resource: keys.resource, peer_resource, buffer: buffer as usize })
}

fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    // What drbdadm would take for an option, or for all resources.
    if !letters || name.is_empty() || name.starts_with('-') || name == "all" {
        let message = format!("`{name}` is not the name of a DRBD resource");
        let help = "it is the name behind `resource` in /etc/drbd.d, as in `resource = \"r0\"`";
        return Err(ConfigError::bad_value(&[key], message, Some(help)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn a_resource_is_named() {
        let due = |buffer| Settings { resource: "web-1.r0".into(), peer_resource: "web-1.r0".into(), buffer };
        assert_eq!(parse("resource = 'web-1.r0'").unwrap(), due(256 << 20));
        assert_eq!(parse("resource = 'web-1.r0'\nbuffer = '16MiB'").unwrap(), due(16 << 20));
        for name in ["", "-v", "all", "r0 r1", "r/0", "r\u{f6}0"] {
            assert_eq!(parse(&format!("resource = '{name}'")).unwrap_err().path, ["resource"], "{name}");
            let error = parse(&format!("resource = 'r0'\npeer_resource = '{name}'")).unwrap_err();
            assert_eq!(error.path, ["peer_resource"], "{name}");
        }
        for size in ["15MiB", "lots", "2TiB"] {
            let error = parse(&format!("resource = 'r0'\nbuffer = '{size}'")).unwrap_err();
            assert_eq!(error.path, ["buffer"], "{size}");
        }
        assert!(matches!(parse("").unwrap_err().problem, ConfigProblem::MissingKey { .. }));
        let unknown = parse("resource = 'r0'\ndevice = 'x'").unwrap_err();
        assert!(matches!(unknown.problem, ConfigProblem::UnknownKey { .. }));
    }
}
