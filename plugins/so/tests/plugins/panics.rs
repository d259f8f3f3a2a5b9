//! Plugins that panic, as a shared object.
//!
//! ```toml
//! [policy]
//! plugin = "panics"
//! after = 10           # calls
//! ```

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    ConfigError, EpochPolicy, EpochStats, ErrorCode, Factory, Host, Metric, OpenEpoch, PluginEntry,
    PluginError, parse_config, schema,
};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "panics",
        version: env!("CARGO_PKG_VERSION"),
        summary: "panics after some epochs",
        validate: &|text| Panics::parse(text).map(drop),
        schema: &schema::<Panics>,
        factory: Factory::Policy(&|text, context| {
            let Panics { after } = Panics::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let asked = context.host.metric("asked_total", "how often an interval was asked for");
            Ok(Box::new(Policy { after, asked, began: context.host.now(), host: context.host }))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
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

struct Policy {
    after: u32,
    asked: Arc<dyn Metric>,
    host: Arc<dyn Host>,
    began: Duration,
}

impl EpochPolicy for Policy {
    fn interval(&mut self, _last: &EpochStats) -> Duration {
        self.asked.add(1);
        assert!(self.host.now() >= self.began, "the engine's clock goes back");
        tracing::info!(left = self.after, "asked for an interval");
        self.after = self.after.checked_sub(1).expect("enough epochs");
        Duration::from_millis(25)
    }

    fn again(&mut self, open: &OpenEpoch) -> Option<Duration> {
        (open.held_frames > 0).then_some(open.age)
    }
}
