//! `cargo xtask soak` prepares what this needs and runs it.
#![forbid(unsafe_code)]

use aventine_soak::{Options, SoakError, soak};
use clap::Parser;
use std::fs;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    let report = soak(&options);
    eprintln!("{report}");
    let written = options.report.as_ref().map_or(Ok(()), |path| {
        fs::write(path, report.json()).map_err(|source| SoakError::Report { path: path.clone(), source })
    });
    if let Err(error) = &written {
        eprintln!("{error}");
    }
    if report.failure.is_none() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
