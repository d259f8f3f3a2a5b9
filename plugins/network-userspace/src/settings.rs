//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{ConfigError, ConfigProblem, parse_config};
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::path::PathBuf;

const DEFAULT_LIMIT: u64 = 64 << 20;
const LIMIT_RANGE: RangeInclusive<u64> = 1 << 20..=64 << 30;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
#[schemars(extend("oneOf" = [{ "required": ["device"] }, { "required": ["uplink"] }]))]
pub(crate) struct Keys {
    /// A tap device on the bridge of the guest's network, existing on both hosts. The same as `uplink = { tap = … }`.
    device: Option<String>,
    /// Where frames go to and come from, if that is no tap device.
    uplink: Option<UplinkKey>,
    /// The socket on which a VM that runs already listens for its network (see `attach` of the guest).
    guest: Option<PathBuf>,
    /// Most bytes of frames to hold; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    limit: Option<String>,
}

/// Where frames go to and come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(crate = "aventine_api::schemars")]
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
        let (key, uplink) = match (keys.device, keys.uplink) {
            (None, Some(uplink)) => (&["uplink", "tap"][..], uplink),
            (Some(device), None) => (&["device"][..], UplinkKey::Tap(device)),
            (Some(_), Some(_)) => {
                let help = "keep one of them: both say where frames go to and come from";
                return Err(ConfigError::bad_value(
                    &["device"],
                    "`device` and `uplink` exclude each other",
                    Some(help),
                ));
            }
            (None, None) => {
                let problem = ConfigProblem::MissingKey { key: "device".to_owned() };
                return Err(ConfigError { path: Vec::new(), problem });
            }
        };
        if let UplinkKey::Tap(name) = &uplink
            && (name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '\0']))
        {
            let message = format!("{name:?} is not a device name");
            return Err(ConfigError::bad_value(
                key,
                message,
                Some("1 to 15 characters, such as \"tap-web\""),
            ));
        }
        let limit =
            keys.limit.map_or(Ok(DEFAULT_LIMIT), |text| u64::parse_key(&["limit"], &text, &LIMIT_RANGE))?;
        Ok(Settings { uplink, guest: keys.guest, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn keys_are_checked() {
        let good = Settings::parse("uplink = { tap = 'tap-web' }").unwrap();
        assert_eq!((good.uplink, good.limit), (UplinkKey::Tap("tap-web".into()), 64 << 20));
        let good = Settings::parse("uplink = { stream = '/run/passt' }\nlimit = '2GiB'").unwrap();
        assert_eq!((good.uplink, good.limit), (UplinkKey::Stream("/run/passt".into()), 2 << 30));
        let good = Settings::parse("uplink = { tap = 'tap-web' }\nguest = '/run/vm/net0'").unwrap();
        assert_eq!(good.guest, Some("/run/vm/net0".into()));
        let good = Settings::parse("device = 'tap-web'").unwrap();
        assert_eq!(good.uplink, UplinkKey::Tap("tap-web".into()));
        for (text, path) in [
            ("device = 'a-very-long-device-name'", &["device"][..]),
            ("device = 'tap0'\nuplink = { tap = 'tap0' }", &["device"]),
            ("uplink = { tap = 'a-very-long-device-name' }", &["uplink", "tap"][..]),
            ("uplink = { tap = 'tap0' }\nlimit = '10'", &["limit"]),
            ("uplink = { tap = 'tap0' }\nlimit = '1KiB'", &["limit"]),
        ] {
            assert_eq!(Settings::parse(text).unwrap_err().path, path, "{text}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "device".into() });
    }
}
