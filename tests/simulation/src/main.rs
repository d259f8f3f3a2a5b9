//! Runs schedules of the simulation, or replays one.
#![forbid(unsafe_code)]

use aventine_simulation::{Break, run, search};
use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;

/// Checks the seven promises of the replication protocol under faults at every step.
#[derive(Parser)]
struct Options {
    /// Replay this seed, and show its shortest failing schedule.
    #[arg(long)]
    seed: Option<u64>,
    /// How many schedules to run.
    #[arg(long, default_value_t = 1_000_000)]
    schedules: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Threads; as many as there are processors unless told.
    #[arg(long)]
    threads: Option<usize>,
    /// Plant a deliberate break, by its name.
    #[arg(long = "break", value_parser = named)]
    plant: Option<Break>,
}

fn named(name: &str) -> Result<Break, String> {
    let all = || Break::ALL.iter().map(|b| format!("{b:?}"));
    let known = || all().collect::<Vec<_>>().join(", ");
    let at = all()
        .position(|n| n == name)
        .ok_or_else(|| format!("No break has this name; there are {}", known()))?;
    Ok(Break::ALL[at])
}

fn main() -> ExitCode {
    let options = Options::parse();
    let failure = if let Some(seed) = options.seed {
        let failure = run(seed, options.plant);
        if failure.is_none() {
            println!("Seed {seed} keeps every promise.");
        }
        failure
    } else {
        let threads = options
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let start = Instant::now();
        let seeds = options.first..options.first.saturating_add(options.schedules);
        let (coverage, failure) = search(seeds, options.plant, threads);
        let rate = coverage.schedules as f64 / start.elapsed().as_secs_f64();
        println!("{coverage:#?}\n{rate:.0} schedules/s on {threads} threads");
        failure
    };
    match failure {
        Some(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}
