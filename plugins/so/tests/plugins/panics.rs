//! Plugins that panic, as a shared object.
//!
//! ```toml
//! [policy]
//! plugin = "panics"
//! after = 10           # calls
//! ```

use aventine_api::{
    ConfigError, EpochPolicy, EpochStats, ErrorCode, Factory, PluginEntry, PluginError, parse_config,
};
use serde::Deserialize;
use std::time::Duration;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "panics",
        version: env!("CARGO_PKG_VERSION"),
        summary: "panics after some epochs",
        validate: &|text| Panics::parse(text).map(drop),
        factory: Factory::Policy(&|text, _context| {
            Ok(Box::new(Panics::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?))
        }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Panics {
    after: u32,
}

impl Panics {
    fn parse(text: &str) -> Result<Panics, ConfigError> {
        let panics: Panics = parse_config(text)?;
        assert!(panics.after != 0, "zero is what this plugin panics about at once");
        Ok(panics)
    }
}

impl EpochPolicy for Panics {
    fn interval(&mut self, _last: &EpochStats) -> Duration {
        tracing::info!(left = self.after, "asked for an interval");
        self.after = self.after.checked_sub(1).expect("enough epochs");
        Duration::from_millis(25)
    }
}
