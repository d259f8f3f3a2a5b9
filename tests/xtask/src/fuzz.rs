//! The fuzz targets, with libFuzzer.
//!
//! ```text
//! target/tools/             cargo-fuzz, where it is not installed
//! target/fuzz/              what it builds
//!   corpus/TARGET/            inputs found so far; a later run goes on from them
//!   artifacts/TARGET/         inputs that broke the target
//!   TARGET.log                what libFuzzer said last
//! ```
//! The targets are `tests/fuzz/libfuzzer`, and the inputs to start from `tests/fuzz/seeds`.

use crate::machine::{self, MachineError, Need};
use crate::{cargo_program, root, target};
use aventine_lab::run::{self, RunError};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// libFuzzer is C++.
const NEEDS: &[Need] = &[("c++", "g++")];
/// The release of cargo-fuzz that is installed.
const CARGO_FUZZ: &str = "0.13.2";
/// The sanitizer and the coverage are options of the nightly compiler; the stable one has them as well.
const UNLOCK: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");
const HOST: &str = "x86_64-unknown-linux-gnu";
/// Seconds for each target, unless said otherwise.
const SECONDS: u32 = 10;
/// No input makes a target take longer (seconds, on a machine that is busy with other things), or ask for more memory at
/// once (MiB): the longest frame has 64 MiB.
const LIMITS: [&str; 3] = ["-timeout=120", "-malloc_limit_mb=128", "-rss_limit_mb=2048"];

/// Why fuzzing did not come to a good end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FuzzError {
    #[error("Usage: cargo xtask fuzz [--seconds N] [TARGET…]")]
    Usage,
    #[error("There is no target {name}; the targets are {}", known.join(", "))]
    NoTarget { name: String, known: Vec<String> },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("Cannot use {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("Broken: {}", .0.join(", "))]
    Broken(Vec<String>),
}

struct Options {
    seconds: u32,
    targets: Vec<String>,
}

/// Installs what is missing, builds, and runs every target for a while.
pub(crate) fn fuzz(arguments: &[OsString]) -> Result<(), FuzzError> {
    let known = names(&root().join("tests/fuzz/libfuzzer/fuzz_targets"))?;
    let Options { seconds, targets } = parse(arguments, known)?;
    machine::install(NEEDS)?;
    let home = target().join("fuzz");
    build(&home, &targets)?;
    let mut broken = Vec::new();
    for target in targets {
        if !run_target(&home, &target, seconds)? {
            broken.push(target);
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(FuzzError::Broken(broken)) }
}

fn parse(arguments: &[OsString], known: Vec<String>) -> Result<Options, FuzzError> {
    let mut options = Options { seconds: SECONDS, targets: Vec::new() };
    let mut words = arguments.iter().map(|word| word.to_str().ok_or(FuzzError::Usage));
    while let Some(word) = words.next().transpose()? {
        if word == "--seconds" {
            let seconds = words.next().transpose()?.and_then(|n| n.parse().ok()).filter(|&n| n > 0);
            options.seconds = seconds.ok_or(FuzzError::Usage)?;
        } else if word.starts_with('-') {
            return Err(FuzzError::Usage);
        } else if known.iter().any(|name| name == word) {
            options.targets.push(word.to_owned());
        } else {
            return Err(FuzzError::NoTarget { name: word.to_owned(), known });
        }
    }
    if options.targets.is_empty() {
        options.targets = known;
    }
    Ok(options)
}

/// The names of the files in `dir`, without what follows the dot.
fn names(dir: &Path) -> Result<Vec<String>, FuzzError> {
    let failed = |source| FuzzError::File { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn build(home: &Path, targets: &[String]) -> Result<(), FuzzError> {
    let mut words = vec!["fuzz", "build", "--fuzz-dir", "tests/fuzz/libfuzzer", "--target", HOST];
    if let [only] = targets {
        words.push(only);
    }
    let mut cargo = Command::new(cargo_program());
    cargo.args(words).arg("--target-dir").arg(home).current_dir(root()).env(UNLOCK.0, UNLOCK.1);
    if run::find("cargo-fuzz").is_none() {
        let tools = target().join("tools");
        if !tools.join("bin/cargo-fuzz").exists() {
            eprintln!("Installing cargo-fuzz {CARGO_FUZZ} below {}", tools.display());
            let mut install = Command::new(cargo_program());
            install.args(["install", "--quiet", "--locked", "cargo-fuzz", "--version", CARGO_FUZZ, "--root"]);
            run::run(install.arg(&tools))?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path)));
        cargo.env("PATH", path.unwrap_or_default());
    }
    Ok(run::run(&mut cargo)?)
}

/// Runs one target; whether it held.
fn run_target(home: &Path, target: &str, seconds: u32) -> Result<bool, FuzzError> {
    let made = |path: PathBuf| match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(FuzzError::File { path, source }),
    };
    let corpus = made(home.join("corpus").join(target))?;
    let artifacts = made(home.join("artifacts").join(target))?;
    let program = home.join(HOST).join("release").join(target);
    let log = home.join(format!("{target}.log"));
    let failed = |source| FuzzError::File { path: log.clone(), source };
    let output = File::create(&log).map_err(failed)?;
    let mut command = Command::new(&program);
    command.arg(&corpus).arg(root().join("tests/fuzz/seeds").join(target)).args(LIMITS);
    command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.stdout(output.try_clone().map_err(failed)?).stderr(output);
    let held = run::run(&mut command).is_ok();
    let text = String::from_utf8_lossy(&fs::read(&log).map_err(failed)?).into_owned();
    let number = |name| statistic(&text, name).unwrap_or("?");
    println!(
        "{target:<10} {:>10} runs {:>8}/s {:>5} MiB  {}",
        number("number_of_executed_units"),
        number("average_exec_per_sec"),
        number("peak_rss_mb"),
        if held { "held" } else { "BROKEN" }
    );
    if !held {
        println!("{}", failure(&text, &program));
    }
    Ok(held)
}

/// What libFuzzer counted: `stat::NAME:   VALUE`.
fn statistic<'t>(log: &'t str, name: &str) -> Option<&'t str> {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
    line?.strip_prefix(':').map(str::trim)
}

/// What went wrong, and how to see it again.
fn failure(log: &str, program: &Path) -> String {
    let reason = |line: &&str| line.contains("panicked at") || line.contains("ERROR: ");
    let mut said = log.lines().skip_while(|line| !reason(line)).take(3).collect::<Vec<_>>();
    if said.is_empty() {
        said = log.lines().rev().take(3).collect();
    }
    let input = log.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file);
    let again = match input {
        Some(input) => format!("See it again with:\n    {} {input}", program.display()),
        None => format!("It left no input; see {}", program.with_extension("log").display()),
    };
    format!("{}\n{again}", said.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Options, FuzzError> {
        let words = words.iter().map(OsString::from).collect::<Vec<_>>();
        parse(&words, vec!["frame".into(), "nbd".into()])
    }

    #[test]
    fn all_targets_run_unless_some_are_named() {
        let all = parsed(&[]).unwrap();
        assert_eq!((all.seconds, all.targets.len()), (SECONDS, 2));
        let one = parsed(&["--seconds", "60", "nbd"]).unwrap();
        assert_eq!((one.seconds, one.targets), (60, vec!["nbd".to_owned()]));
        assert!(matches!(parsed(&["--seconds"]), Err(FuzzError::Usage)));
        assert!(matches!(parsed(&["--seconds", "0"]), Err(FuzzError::Usage)));
        assert!(matches!(parsed(&["nbdd"]), Err(FuzzError::NoTarget { name, .. }) if name == "nbdd"));
    }

    #[test]
    fn a_crash_is_told_with_its_input() {
        let log = "INFO: Seed: 1\nthread '<unnamed>' panicked at core/x.rs:7:5:\nassertion failed\nnote: run\n\
                   artifact_prefix='a/'; Test unit written to a/crash-1\nstat::number_of_executed_units: 77\n";
        assert_eq!(statistic(log, "number_of_executed_units"), Some("77"));
        assert_eq!(statistic(log, "executed"), None);
        let told = failure(log, Path::new("/t/nbd"));
        assert!(
            told.contains("core/x.rs:7:5:\nassertion failed") && told.ends_with("/t/nbd a/crash-1"),
            "{told}"
        );
    }

    #[test]
    fn every_target_has_seeds() {
        let fuzz = root().join("tests/fuzz");
        assert_eq!(names(&fuzz.join("libfuzzer/fuzz_targets")).unwrap(), names(&fuzz.join("seeds")).unwrap());
    }
}
