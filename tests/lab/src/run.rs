//! Running other programs.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("Cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{command} failed ({status}){output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it had to say, where that was not shown already.
        output: String,
    },
}

/// Runs a command with its output going where this program's goes.
pub fn run(command: &mut Command) -> Result<(), RunError> {
    let status = command.status().map_err(|source| start_error(command, source))?;
    check(command, status, "")
}

/// Runs a command and answers what it printed. What it had to say is told if it fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>, RunError> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|source| start_error(command, source))?;
    check(command, status, &String::from_utf8_lossy(&stderr))?;
    Ok(stdout)
}

/// As [`output`], as text.
pub fn text(command: &mut Command) -> Result<String, RunError> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where the shell would find a program. System administration programs count, whoever asks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(admin).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn start_error(command: &Command, source: io::Error) -> RunError {
    RunError::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn check(command: &Command, status: ExitStatus, said: &str) -> Result<(), RunError> {
    if status.success() {
        return Ok(());
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let command = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let output = if said.trim().is_empty() { String::new() } else { format!(":\n{}", said.trim()) };
    Err(RunError::Failed { command, status, output })
}
