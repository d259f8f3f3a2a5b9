//! Epoch policy plugin `fixed`: every epoch takes the same time.
//!
//! ```toml
//! [policy]
//! plugin = "fixed"
//! interval = "25ms"    # from the start of one pause to the start of the next; 1ms to 10s
//! ```
//! A shorter interval lowers the delay that clients see (a frame waits for half an interval and the commit on
//! average) and raises the cost: the guest pauses more often and pages that are written often are sent more often.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, EpochPolicy, EpochStats, ErrorCode, Factory, PluginEntry, PluginError, parse_config, schema,
};
use serde::Deserialize;
use std::time::Duration;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "fixed",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Epochs of one length",
        validate: &|text| Fixed::parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Policy(&|text, _context| {
            Ok(Box::new(Fixed::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?))
        }),
        upkeep: None,
    }
}

const DEFAULT: Duration = Duration::from_millis(25);
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// From the start of one pause to the start of the next, 1ms to 10s; 25ms if not set.
    #[schemars(with = "Option<aventine_api::DurationText>")]
    interval: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Fixed {
    interval: Duration,
}

impl Fixed {
    fn parse(text: &str) -> Result<Fixed, ConfigError> {
        let keys: Keys = parse_config(text)?;
        let range = SHORTEST..=LONGEST;
        let interval =
            keys.interval.map_or(Ok(DEFAULT), |text| Duration::parse_key(&["interval"], &text, &range))?;
        Ok(Fixed { interval })
    }
}

impl EpochPolicy for Fixed {
    fn interval(&mut self, _last: &EpochStats) -> Duration {
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_what_the_configuration_says() {
        for (text, expected) in [
            ("", DEFAULT),
            ("interval = '1ms'", SHORTEST),
            ("interval = '1500us'", Duration::from_micros(1500)),
            ("interval = '10s'", LONGEST),
        ] {
            let busy = EpochStats { dirty_pages: 1 << 20, in_flight: 9, ..EpochStats::default() };
            assert_eq!(Fixed::parse(text).unwrap().interval(&busy), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_at_its_key() {
        for value in ["", "25", "ms", "-1ms", "2.5ms", "25min", "999us", "10001ms", "99999999999999999999s"] {
            let error = Fixed::parse(&format!("interval = '{value}'")).unwrap_err();
            assert_eq!(error.path, ["interval"], "{value}");
        }
        assert!(Fixed::parse("intervall = '25ms'").is_err());
    }
}
