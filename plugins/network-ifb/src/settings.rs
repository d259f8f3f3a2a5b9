//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use aventine_network_kernel::{device_name, limit};
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Keys {
    /// The guest's tap device, on the bridge of its network; it exists on both hosts.
    device: String,
    /// Most bytes of frames to hold; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    limit: Option<String>,
}

/// A checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The guest's tap.
    pub(crate) device: String,
    /// Most bytes of frames to hold.
    pub(crate) limit: u32,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let keys: Keys = parse_config(text)?;
        Ok(Settings { device: device_name("device", keys.device)?, limit: limit(keys.limit.as_deref())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn keys_are_checked() {
        let good = Settings::parse("device = 'tap-web'").unwrap();
        assert_eq!(good, Settings { device: "tap-web".into(), limit: 64 << 20 });
        for (text, path) in [("device = 'tap/web'", "device"), ("device = 'tap0'\nlimit = '1KiB'", "limit")] {
            assert_eq!(Settings::parse(text).unwrap_err().path, [path], "{text}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "device".into() });
    }
}
