//! Epoch policy plugin `output`: an epoch ends when the guest has sent something, for until then nobody gets it.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_policy_output.so"]
//! [policy]
//! plugin = "output"
//! longest = "100ms"    # an epoch without output; 1ms to 10s
//! shortest = "2ms"     # an epoch with output, and how often it is looked for; 1ms to 1s, no more than `longest`
//! ```
//! A client that waits for each answer waits less than with epochs of one length, and a guest that says nothing is paused
//! seldom. It shows what a policy is told and asked, a check of two keys against each other, and a metric.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, Context, DurationText, EpochPolicy, EpochStats, ErrorCode, Factory, Metric, OpenEpoch,
    PluginEntry, PluginError, parse_config, schema,
};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "output",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Epochs that end when the guest has sent something",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Policy(&|text, context: Context| {
            let (longest, shortest) = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let ended = context.host.metric("ended_for_output_total", "epochs that ended because output waited");
            Ok(Box::new(Output { longest, shortest, sealed: None, ended }))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// Length of an epoch without output, 1ms to 10s; 100ms if not set.
    #[schemars(with = "Option<DurationText>")]
    longest: Option<String>,
    /// Least length of an epoch with output, 1ms to 1s and no more than `longest`; 2ms if not set.
    #[schemars(with = "Option<DurationText>")]
    shortest: Option<String>,
}

/// The longest and the shortest epoch.
fn parse(text: &str) -> Result<(Duration, Duration), ConfigError> {
    let keys: Keys = parse_config(text)?;
    let [ms, second, most] = [1, 1_000, 10_000].map(Duration::from_millis);
    let longest =
        Duration::parse_key(&["longest"], keys.longest.as_deref().unwrap_or("100ms"), &(ms..=most))?;
    let shortest = keys.shortest.as_deref().unwrap_or("2ms");
    let shortest = match Duration::parse_key(&["shortest"], shortest, &(ms..=second))? {
        shortest if shortest > longest => {
            let message = format!("an epoch cannot be longer with output than without ({})", longest.show());
            return Err(ConfigError::bad_value(&["shortest"], message, Some("make `longest` longer")));
        }
        shortest => shortest,
    };
    Ok((longest, shortest))
}

struct Output {
    longest: Duration,
    shortest: Duration,
    /// What was held when the epoch began: frames of sealed epochs, which its end does not help.
    sealed: Option<u64>,
    ended: Arc<dyn Metric>,
}

impl EpochPolicy for Output {
    fn interval(&mut self, _: &EpochStats) -> Duration {
        self.sealed = None;
        self.longest
    }

    fn again(&mut self, open: &OpenEpoch) -> Option<Duration> {
        let sealed = *self.sealed.get_or_insert(open.held_frames);
        if open.age < self.shortest {
            return Some((self.shortest - open.age).max(Duration::from_micros(100)));
        }
        // Where sealed frames have left and some are held, they may be new. As many new ones as have left are not told from
        // those: they wait for the next look at another number, or for the longest epoch.
        if open.held_frames == 0 || open.held_frames == sealed {
            return Some(self.shortest);
        }
        self.ended.add(1);
        Some(Duration::ZERO)
    }
}
