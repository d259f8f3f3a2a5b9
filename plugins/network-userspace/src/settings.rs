//! The plugin's keys.

use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    uplink: UplinkKey,
    guest: Option<PathBuf>,
    #[serde(default = "default_limit")]
    limit: String,
}

fn default_limit() -> String {
    "64MiB".to_owned()
}

/// Where frames go to and come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UplinkKey {
    /// An existing tap device.
    Tap(String),
    /// A unix stream socket with QEMU's framing, to connect to.
    Stream(PathBuf),
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) uplink: UplinkKey,
    /// On the primary: the socket on which a VM that runs already listens.
    pub(crate) guest: Option<PathBuf>,
    /// Most bytes of frames to hold.
    pub(crate) limit: u64,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let keys: Keys = parse_config(text)?;
        if let UplinkKey::Tap(name) = &keys.uplink
            && (name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '\0']))
        {
            let message = format!("{name:?} is not a device name");
            return Err(ConfigError::bad_value(
                &["uplink", "tap"],
                message,
                Some("1 to 15 characters, such as \"tap-web\""),
            ));
        }
        let limit = bytes(&keys.limit).filter(|b| (1 << 20..=64 << 30).contains(b)).ok_or_else(|| {
            let message = format!("{:?} is not a size from 1MiB to 64GiB", keys.limit);
            ConfigError::bad_value(&["limit"], message, Some("for example \"64MiB\""))
        })?;
        Ok(Settings { uplink: keys.uplink, guest: keys.guest, limit })
    }
}

/// Reads a size such as `64MiB`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn keys_are_checked() {
        let good = Settings::parse("uplink = { tap = 'tap-web' }").unwrap();
        assert_eq!((good.uplink, good.limit), (UplinkKey::Tap("tap-web".into()), 64 << 20));
        let good = Settings::parse("uplink = { stream = '/run/passt' }\nlimit = '2GiB'").unwrap();
        assert_eq!((good.uplink, good.limit), (UplinkKey::Stream("/run/passt".into()), 2 << 30));
        let good = Settings::parse("uplink = { tap = 'tap-web' }\nguest = '/run/vm/net0'").unwrap();
        assert_eq!(good.guest, Some("/run/vm/net0".into()));
        for (text, path) in [
            ("uplink = { tap = 'a-very-long-device-name' }", &["uplink", "tap"][..]),
            ("uplink = { tap = 'tap0' }\nlimit = '10'", &["limit"]),
            ("uplink = { tap = 'tap0' }\nlimit = '1KiB'", &["limit"]),
        ] {
            assert_eq!(Settings::parse(text).unwrap_err().path, path, "{text}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "uplink".into() });
    }
}
