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
    /// The device by which the guest's frames, and no others, leave; the bridge's other port if not set.
    egress: Option<String>,
    /// Most bytes of frames to hold; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    limit: Option<String>,
}

/// A checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The guest's tap.
    pub(crate) device: String,
    /// Where its frames leave; by itself the other port of the tap's bridge.
    pub(crate) egress: Option<String>,
    /// Most bytes of frames to hold.
    pub(crate) limit: u32,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let keys: Keys = parse_config(text)?;
        let device = device_name("device", keys.device)?;
        let egress = keys.egress.map(|name| device_name("egress", name)).transpose()?;
        if egress.as_ref() == Some(&device) {
            let help =
                "what leaves by the guest's tap goes to the guest; name the bridge's port to the world";
            return Err(ConfigError::bad_value(&["egress"], "egress is the guest's own tap", Some(help)));
        }
        Ok(Settings { device, egress, limit: limit(keys.limit.as_deref())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn keys_are_checked() {
        let good = Settings::parse("device = 'tap-web'").unwrap();
        assert_eq!(good, Settings { device: "tap-web".into(), egress: None, limit: 64 << 20 });
        let good = Settings::parse("device = 'tap-web'\negress = 'eth1'\nlimit = '2GiB'").unwrap();
        assert_eq!(good, Settings { device: "tap-web".into(), egress: Some("eth1".into()), limit: 2 << 30 });
        for (text, path) in [
            ("device = 'a-very-long-device-name'", "device"),
            ("device = 'tap0'\negress = 'tap0'", "egress"),
            ("device = 'tap0'\nlimit = '1KiB'", "limit"),
        ] {
            assert_eq!(Settings::parse(text).unwrap_err().path, [path], "{text}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "device".into() });
    }
}
