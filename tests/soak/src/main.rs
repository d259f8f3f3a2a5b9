//! One guest and one client under one random fault after the other, for as long as it is wanted. `cargo xtask soak` prepares
//! what it needs and runs it.
//!
//! ```text
//!  protected ─► fault ─► who owns the guest? ─► client is served ─► both hosts are back ─► protected ─► …
//!      └── every `BATCH` rounds: the client reads everything back, and begins anew on a new connection
//! ```
//! The guest is never started again: it goes from host to host. What breaks ends the run, with the seed that repeats its
//! moments and the logs where they are.
#![forbid(unsafe_code)]

mod fault;
mod report;

use aventine_demo::checker::{self, CheckError, Load};
use aventine_demo::lab::{Lab, LabError, Pair, Parts, STARTUP};
use aventine_demo::network::{GUESTS, NetworkError};
use aventine_demo::node::NodeError;
use clap::Parser;
use fault::Fault;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{error, fs, io, iter, thread};

/// Rounds between two times that everything is read back.
const BATCH: u64 = 20;
/// Answers that show that a client is served.
const SERVED: u64 = 200;
/// The guest's address.
const GUEST: &str = GUESTS[0];
/// Longest that anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// One guest and one client under random faults.
#[derive(Parser)]
#[command(after_help = "Example:\n  cargo xtask soak --minutes 10 --faults kill,cut")]
struct Options {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "rounds")]
    minutes: u64,
    /// How many faults, instead of how long
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Which faults
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
    faults: Vec<Fault>,
    /// Repeats the random choices of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long a side may be silent before it counts as lost
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    detection: String,
    /// Time between two epochs
    #[arg(long, value_name = "DURATION", default_value = "25ms")]
    interval: String,
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The `aventine` program
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// The guest's kernel
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// The guest's initramfs
    #[arg(long, value_name = "PATH")]
    initrd: PathBuf,
    /// Directory for images, sockets and logs
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
enum SoakError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Client(#[from] CheckError),
    #[error("Both hosts own the guest")]
    TwoOwners,
    #[error("Nobody owns the guest (host a: {0}; host b: {1})")]
    NoOwner(String, String),
    #[error("The client lost {lost} writes{}; {problems}", if *broken { ", and its connection" } else { "" })]
    Lost { lost: u64, broken: bool, problems: String },
    #[error("Cannot write {path}")]
    Report { path: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1 << 32));
    let mut report = Report::new(seed, &options.detection, &options.interval);
    let ended = soak(&options, seed, &mut report);
    if let Err(error) = &ended {
        let causes = iter::successors(error::Error::source(error), |cause| cause.source());
        let causes = causes.map(|cause| format!(": {cause}")).collect::<String>();
        report.failure = Some(format!("{error}{causes}"));
    }
    eprintln!("{report}");
    let written = options.report.as_ref().map_or(Ok(()), |path| {
        fs::write(path, report.json()).map_err(|source| SoakError::Report { path: path.clone(), source })
    });
    if let Err(error) = &written {
        eprintln!("{error}");
    }
    if ended.is_ok() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn soak(options: &Options, seed: u64, report: &mut Report) -> Result<(), SoakError> {
    let lab = Lab::new(&Parts {
        program: options.program.clone(),
        kernel: options.kernel.clone(),
        initrd: options.initrd.clone(),
        work: options.work.clone(),
        detection: options.detection.clone(),
        interval: options.interval.clone(),
        tls: true,
        ..Parts::default()
    })?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut pair = lab.start()?;
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    let more = |done| options.rounds.map_or_else(|| Instant::now() < end, |rounds| done < rounds);
    let mut done = 0;
    while more(done) {
        let load = Load::start(checker::connect(lab.client(), GUEST, STARTUP)?, random.random());
        load.wait_answers(SERVED, LIMIT)?;
        for _ in 0..BATCH {
            if !more(done) {
                break;
            }
            let fault = *options.faults.choose(&mut random).unwrap_or(&Fault::Kill);
            round(&lab, &mut pair, &load, fault, &mut random, report)?;
            done += 1;
        }
        let outcome = load.finish(lab.client(), GUEST)?;
        report.writes_acknowledged += outcome.acknowledged;
        report.writes_lost += outcome.lost;
        report.connections_broken += u64::from(outcome.broken);
        if outcome.lost > 0 || outcome.broken {
            let problems = outcome.problems.join("; ");
            return Err(SoakError::Lost { lost: outcome.lost, broken: outcome.broken, problems });
        }
        checker::forget(lab.client(), GUEST, LIMIT)?;
        eprintln!("{done} rounds, {} writes read back", report.writes_acknowledged);
    }
    Ok(())
}

/// One fault, and everything well again.
fn round(
    lab: &Lab,
    pair: &mut Pair,
    load: &Load,
    fault: Fault,
    random: &mut StdRng,
    report: &mut Report,
) -> Result<(), SoakError> {
    thread::sleep(Duration::from_millis(random.random_range(0..300)));
    load.take_gap();
    let moved = fault.strike(lab, pair, random)?;
    load.wait_answers(SERVED, LIMIT)?;
    let gap = load.take_gap();
    fault.repair(lab, pair)?;
    pair.wait_protected()?;
    load.wait_answers(SERVED, LIMIT)?;
    report.add(fault, moved, gap);
    Ok(())
}
