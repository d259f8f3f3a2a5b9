//! The example plugins, built as their authors would: each a workspace of its own. Its lock file is made of the program's, so that
//! both have the same versions.
//!
//! They share one target directory, `target/examples-so`, and with it what they depend on.
#![forbid(unsafe_code)]

use aventine_lab::run::{self, RunError};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// The workspaces below `examples`; a shared object is named after its own.
pub const EXAMPLES: [&str; 5] =
    ["arbiter-http", "codec-xor", "network-ring", "policy-output", "transport-unix"];

/// This repository.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// Where the examples are built.
pub fn target() -> PathBuf {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir));
    target.join("examples-so")
}

/// `cargo` in the workspace at `workspace`, building to `target`. What is not in its lock file is refused.
pub fn cargo(workspace: &Path, target: &Path, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).arg("--quiet").arg("--target-dir").arg(target).current_dir(workspace);
    // Half of the time and of the space.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo
}

/// Why an example could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its lock file.
    #[error("Cannot make {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Cargo.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Builds an example, with what cargo finds as the compiler; answers its shared object. Where it has no lock file it gets one.
pub fn build(example: &str) -> Result<PathBuf, BuildError> {
    let workspace = root().join("examples").join(example);
    let path = workspace.join("Cargo.lock");
    let is_locked = path.exists();
    if !is_locked {
        let copied = fs::copy(root().join("Cargo.lock"), &path);
        copied.map_err(|source| BuildError::Lock { path: path.clone(), source })?;
    }
    // The first time cargo takes out of it what the example does not need.
    let arguments: &[&str] = if is_locked { &["build", "--locked"] } else { &["build"] };
    let built = run::output(&mut cargo(&workspace, &target(), arguments));
    if built.is_err() && !is_locked {
        // It may still be the program's.
        let _ = fs::remove_file(&path);
    }
    built?;
    Ok(shared_object(&target(), example))
}

/// Where cargo puts the shared object of an example.
pub fn shared_object(target: &Path, example: &str) -> PathBuf {
    target.join("debug").join(format!("libaventine_{}.so", example.replace('-', "_")))
}
