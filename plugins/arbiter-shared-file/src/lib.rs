//! Arbiter plugin `shared-file`: the first side to link a file owns the guest.
//!
//! ```toml
//! [arbiter]
//! plugin = "shared-file"
//! path = "/mnt/shared/aventine"    # a directory that both hosts see
//! ```
//! **The directory must be the same one on both hosts** (NFS, or another file system with hard links that both
//! mount). Two directories of the same name on two hosts decide nothing, and nobody can notice from one host alone.
//! Mount NFS `soft`, so that a server out of reach is an error after some seconds and not a wait without end.
//!
//! ```text
//!  PATH/GUEST.SESSION                  the verdict: one line, `SESSION primary` or `SESSION standby`
//!  PATH/.GUEST.SESSION.RANDOM.tmp      a claim being prepared, or left by a crash: harmless, may be removed
//!
//!  claim:  verdict there? ──────────────────────────────────────────────┐
//!            no: write tmp ─► fsync tmp ─► link tmp to the verdict ─────┤
//!                                          (done, or it exists already) └─► fsync directory ─► read the verdict
//! ```
//! Invariants:
//! - `link` is the test-and-set: of any number of calls one succeeds, also on NFS, where its *answer* can be wrong
//!   (a repeated request finds the work of the first). So the answer is never believed; the verdict is read.
//! - A verdict is complete and on stable storage before it has its name, and is never changed or removed.
//! - An answer is given only after the directory is on stable storage, also to the side that merely reads it: else
//!   the crash of a file server could take back a verdict somebody acted on.
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod verdict;

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    Arbiter, ConfigError, Context, ErrorCode, Factory, PluginEntry, PluginError, SessionId, Side, Verdict,
    parse_config, schema,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use verdict::{VerdictError, Verdicts};

aventine_api::inventory::submit! {
    PluginEntry {
        name: "shared-file",
        version: env!("CARGO_PKG_VERSION"),
        summary: "The first to link a file in a directory that both hosts see",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Arbiter(&|text, context| {
            let path = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(SharedFile::new(&path, &context)?))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// A directory that both hosts see.
    path: String,
}

fn parse(text: &str) -> Result<PathBuf, ConfigError> {
    let Keys { path } = parse_config(text)?;
    if path.is_empty() {
        return Err(ConfigError::bad_value(
            &["path"],
            "the path is empty",
            Some("name a directory that both hosts see"),
        ));
    }
    Ok(path.into())
}

/// Longest name of a guest that leaves room for the rest of a file's name.
const MAX_GUEST: usize = 128;

/// Why the arbiter could not be made.
#[derive(Debug, thiserror::Error)]
enum NewError {
    #[error(
        "The guest's name {guest:?} cannot be part of a file's name; use up to {MAX_GUEST} letters, digits and `-_.`, \
         and no dot at the beginning"
    )]
    Name { guest: String },
}

struct SharedFile {
    verdicts: Verdicts,
}

impl SharedFile {
    fn new(path: &Path, context: &Context) -> Result<SharedFile, PluginError> {
        let guest = &context.guest;
        let is_safe = (1..=MAX_GUEST).contains(&guest.len())
            && !guest.starts_with('.')
            && guest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !is_safe {
            return Err(PluginError::new(ErrorCode::Config, NewError::Name { guest: guest.clone() }));
        }
        Ok(SharedFile { verdicts: Verdicts { dir: context.config_dir.join(path), guest: guest.clone() } })
    }
}

impl Arbiter for SharedFile {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        let owner = self.verdicts.claim(session, side)?;
        tracing::info!(%session, owner = owner.name(), "The shared file says who owns the guest");
        Ok(if owner == side { Verdict::Won } else { Verdict::Lost })
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        Ok(self.verdicts.probe()?)
    }
}

impl From<VerdictError> for PluginError {
    fn from(error: VerdictError) -> PluginError {
        let code = match &error {
            VerdictError::Missing { .. } | VerdictError::NoLinks { .. } => ErrorCode::Unavailable,
            VerdictError::Corrupt { .. } => ErrorCode::Corrupt,
            VerdictError::Write { .. } | VerdictError::Read { .. } | VerdictError::Undecided { .. } => {
                ErrorCode::Io
            }
        };
        PluginError::new(code, error)
    }
}

#[cfg(test)]
mod tests;
