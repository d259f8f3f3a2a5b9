//! The keys that both plugins have.

use aventine_api::ConfigError;
use aventine_api::units::Quantity;
use std::ops::RangeInclusive;

/// What `limit` may be. `sch_plug` counts bytes in 32 bits.
pub const LIMIT_RANGE: RangeInclusive<u64> = 1 << 20..=2 << 30;
const DEFAULT_LIMIT: u32 = 64 << 20;

/// Checks a device's name, the value of `key`.
pub fn device_name(key: &str, name: String) -> Result<String, ConfigError> {
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '\0', '%']) {
        let message = format!("{name:?} is not a device name");
        return Err(ConfigError::bad_value(&[key], message, Some("1 to 15 characters, such as \"tap-web\"")));
    }
    Ok(name)
}

/// Reads `limit`: most bytes of frames to hold.
pub fn limit(text: Option<&str>) -> Result<u32, ConfigError> {
    let Some(text) = text else { return Ok(DEFAULT_LIMIT) };
    let limit = u64::parse_key(&["limit"], text, &LIMIT_RANGE)?;
    Ok(u32::try_from(limit).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_limits_are_checked() {
        assert_eq!(device_name("device", "tap-web".into()), Ok("tap-web".into()));
        for bad in ["", "a-very-long-device-name", "a/b", "a b", "tap%d"] {
            assert_eq!(device_name("device", bad.into()).unwrap_err().path, ["device"], "{bad}");
        }
        assert_eq!(limit(None), Ok(64 << 20));
        assert_eq!(limit(Some("2GiB")), Ok(2 << 30));
        for bad in ["1KiB", "3GiB", "10"] {
            assert_eq!(limit(Some(bad)).unwrap_err().path, ["limit"], "{bad}");
        }
    }
}
