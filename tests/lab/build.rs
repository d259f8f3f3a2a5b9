//! Builds the agent beside the library: a crate that has this one as a dependency does not get its programs from cargo.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src/bin/agent.rs");
    println!("cargo::rerun-if-changed=src/wire.rs");
    let given = |name| PathBuf::from(env::var_os(name).unwrap_or_default());
    let agent = given("OUT_DIR").join("agent");
    let built = Command::new(given("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "agent", "--crate-type", "bin", "-C", "opt-level=2"])
        .args(["-C", "strip=symbols", "-C", "panic=abort", "src/bin/agent.rs", "-o"])
        .arg(&agent)
        .status();
    println!("cargo::rustc-env=AVENTINE_LAB_AGENT={}", agent.display());
    match built {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        failed => {
            println!("cargo::error=cannot build the lab's agent: {failed:?}");
            ExitCode::FAILURE
        }
    }
}
