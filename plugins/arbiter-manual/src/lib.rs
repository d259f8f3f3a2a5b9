//! Arbiter plugin `manual`: a person decides.
//!
//! ```toml
//! [arbiter]
//! plugin = "manual"
//! decision = "/var/lib/aventine/web-decision"    # default: `verdict` in the state directory of this side
//! ```
//! When the two hosts have lost each other, each logs the exact lines to type, and waits. The person makes sure that
//! one of the two guests is off, and runs the line that names the other on *both* hosts. Until then neither guest
//! can be heard: nothing is lost, but nothing goes on.
//!
//! ```text
//!  decision file, one line for each decision ever made; later ones are appended
//!    5f2c…e1 standby        session id in hex, then the side that owns the guest
//! ```
//! Invariants:
//! - A line counts for its own session only: a decision of the past never decides again.
//! - Two lines that contradict each other, or one that cannot be read, are an error and never a guess.
//! - The plugin never writes the file.
#![forbid(unsafe_code)]

mod decision;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    Arbiter, ConfigError, Context, ErrorCode, Factory, PluginEntry, PluginError, SessionId, Side, Verdict,
    parse_config, schema,
};
use decision::{Decisions, ReadError};
use serde::Deserialize;
use std::path::PathBuf;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "manual",
        version: env!("CARGO_PKG_VERSION"),
        summary: "A person decides who owns the guest",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Arbiter(&|text, context| {
            let decision = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Manual::new(decision, &context)))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// Where a person writes the decision; `verdict` in the state directory if not set.
    decision: Option<String>,
}

fn parse(text: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Keys { decision } = parse_config(text)?;
    if decision.as_deref() == Some("") {
        let help = Some("name the file a person writes the decision to, or leave the key out");
        return Err(ConfigError::bad_value(&["decision"], "the path is empty", help));
    }
    Ok(decision.map(PathBuf::from))
}

struct Manual {
    guest: String,
    decisions: Decisions,
    /// The session whose lines to type were logged.
    asked: Option<SessionId>,
}

impl Manual {
    fn new(decision: Option<PathBuf>, context: &Context) -> Manual {
        let file = match decision {
            Some(path) => context.config_dir.join(path),
            None => context.state_dir.join("verdict"),
        };
        // A person may type the line in another directory.
        let file = std::path::absolute(&file).unwrap_or(file);
        Manual { guest: context.guest.clone(), decisions: Decisions { file }, asked: None }
    }

    fn ask(&mut self, session: SessionId, side: Side) {
        if self.asked.replace(session) == Some(session) {
            return;
        }
        let (here, there) = (side.name(), side.other().name());
        tracing::warn!(
            "The two hosts of guest {:?} lost each other, and a person must decide which one goes on. Make sure that \
             the guest on one of them is off. Then type the same decision on BOTH hosts, here one of these lines (the \
             other host logs its own):\n\
             the guest goes on here, on the {here}:\n    {}\n\
             the guest goes on there, on the {there}:\n    {}",
            self.guest,
            self.decisions.command(session, side),
            self.decisions.command(session, side.other()),
        );
    }
}

impl Arbiter for Manual {
    fn waits_for_person(&self) -> bool {
        true
    }

    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        match self.decisions.owner(session)? {
            Some(owner) => {
                tracing::info!(%session, owner = owner.name(), "A person decided who owns the guest");
                Ok(if owner == side { Verdict::Won } else { Verdict::Lost })
            }
            None => {
                self.ask(session, side);
                Ok(Verdict::Undecided)
            }
        }
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        Ok(self.decisions.probe()?)
    }
}

impl From<ReadError> for PluginError {
    fn from(error: ReadError) -> PluginError {
        let code = match &error {
            ReadError::NoDirectory { .. } => ErrorCode::Unavailable,
            ReadError::Io { .. } => ErrorCode::Io,
            ReadError::Line { .. } | ReadError::Contradiction { .. } | ReadError::TooLong { .. } => {
                ErrorCode::Corrupt
            }
        };
        PluginError::new(code, error)
    }
}

#[cfg(test)]
mod tests;
