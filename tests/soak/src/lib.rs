//! One guest and one client under one random fault after the other, for as long as it is wanted.
//!
//! ```text
//!  protected ─► fault ─► who owns the guest? ─► client is served ─► both hosts are back ─► protected ─► …
//!      └── every `BATCH` rounds: the client reads everything back, and begins anew on a new connection
//! ```
//! The guest is never started again: it goes from host to host. What breaks ends the run, with the seed that repeats its
//! moments and the logs where they are.
//!
//! A guest with a database keeps its client's one connection for the whole run. After each lost primary its disk is looked at
//! where it was lost; in the end both hosts are lost at once, and it is started again (`ending`).
#![forbid(unsafe_code)]

mod client;
mod ending;
mod fault;
mod report;

use aventine_demo::checker::CheckError;
use aventine_demo::lab::{Lab, LabError, Pair, Parts};
use aventine_demo::network::{GUESTS, NetworkError};
use aventine_demo::node::NodeError;
use aventine_e2e::guest::GuestError;
use aventine_e2e::ledger::LedgerError;
use aventine_e2e::volume::VolumeError;
use clap::Parser;
use client::Client;
pub use client::Workload;
pub use fault::Fault;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
pub use report::Report;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{error, io, iter, thread};

/// Rounds between two times that everything is read back.
const BATCH: u64 = 20;
/// Answers that show that a client is served.
const SERVED: u64 = 200;
/// The guest's address.
const GUEST: &str = GUESTS[0];
/// Longest that anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// One guest and one client under random faults.
#[derive(Clone, Debug, Parser)]
#[command(after_help = "Examples:\n  cargo xtask soak --minutes 10 --faults kill,cut\n  \
    cargo xtask soak --workload sqlite --faults kill --rounds 50")]
pub struct Options {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "rounds")]
    pub minutes: u64,
    /// How many faults, instead of how long
    #[arg(long, value_name = "N")]
    pub rounds: Option<u64>,
    /// Which faults
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
    pub faults: Vec<Fault>,
    /// What the guest does
    #[arg(long, value_enum, default_value_t = Workload::Redis)]
    pub workload: Workload,
    /// Repeats the random choices of an earlier run
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long a side may be silent before it counts as lost
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub detection: String,
    /// Time between two epochs
    #[arg(long, value_name = "DURATION", default_value = "25ms")]
    pub interval: String,
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The `aventine` program
    #[arg(long, value_name = "PATH")]
    pub program: PathBuf,
    /// The guest's kernel
    #[arg(long, value_name = "PATH")]
    pub kernel: PathBuf,
    /// The guest's initramfs
    #[arg(long, value_name = "PATH")]
    pub initrd: PathBuf,
    /// Directory with `bin` and `lib` of Debian's sqlite3
    #[arg(long, value_name = "DIR")]
    pub tools: PathBuf,
    /// Directory for images, sockets and logs
    #[arg(long, value_name = "DIR")]
    pub work: PathBuf,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// The hosts failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The hosts' network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A process failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The client of Redis failed.
    #[error(transparent)]
    Client(#[from] CheckError),
    /// The client of the database failed, or lost something.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The guest says something that it should not.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A host's image is not what it should be.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The guest cannot be reached at first.
    #[error("Nothing in the guest answers")]
    NoGuest(#[source] io::Error),
    /// The client's namespace could not be entered.
    #[error("Cannot enter the client's network namespace")]
    Namespace(#[source] io::Error),
    /// Two guests.
    #[error("Both hosts own the guest")]
    TwoOwners,
    /// No guest.
    #[error("Nobody owns the guest (host a: {0}; host b: {1})")]
    NoOwner(String, String),
    /// Redis lost something.
    #[error("The client lost {lost} writes{}; {problems}", if *broken { ", and its connection" } else { "" })]
    Lost {
        /// How many.
        lost: u64,
        /// Whether its connection broke.
        broken: bool,
        /// The first of them in words.
        problems: String,
    },
    /// The images differ after the guest has stopped writing.
    #[error("The hosts' images {name} differ at byte {offset}")]
    Images {
        /// Which one.
        name: &'static str,
        /// Where.
        offset: u64,
    },
    /// An image cannot be read.
    #[error("Cannot compare the hosts' images {name}")]
    Compare {
        /// Which one.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The report could not be written.
    #[error("Cannot write {path}")]
    Report {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Runs until the time is over, or something breaks, which the report tells then. Blocks.
pub fn soak(options: &Options) -> Report {
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1 << 32));
    let mut report = Report::new(seed, &options.detection, &options.interval);
    if let Err(error) = run(options, seed, &mut report) {
        report.count_loss(&error);
        let causes = iter::successors(error::Error::source(&error), |cause| cause.source());
        let causes = causes.map(|cause| format!(": {cause}")).collect::<String>();
        report.failure = Some(format!("{error}{causes}"));
    }
    report
}

fn run(options: &Options, seed: u64, report: &mut Report) -> Result<(), SoakError> {
    let workload = options.workload;
    let lab = Lab::new(&workload.parts(Parts {
        program: options.program.clone(),
        kernel: options.kernel.clone(),
        initrd: options.initrd.clone(),
        work: options.work.clone(),
        detection: options.detection.clone(),
        interval: options.interval.clone(),
        tls: true,
        ..Parts::default()
    }))?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut pair = workload.start(&lab, options)?;
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    let more = |done| options.rounds.map_or_else(|| Instant::now() < end, |rounds| done < rounds);
    let mut done = 0;
    let mut ended = None;
    while more(done) {
        let mut client = Client::start(workload, &lab, ended, &mut random)?;
        client.wait_served()?;
        for _ in 0..BATCH {
            if !more(done) {
                break;
            }
            let fault = *options.faults.choose(&mut random).unwrap_or(&Fault::Kill);
            round(&lab, &mut pair, &mut client, fault, &mut random, report)?;
            done += 1;
        }
        let finished = client.finish(&lab)?;
        report.writes_acknowledged += finished.acknowledged;
        ended = Some(finished);
        eprintln!("{done} rounds, {} writes read back", report.writes_acknowledged);
    }
    match ended.and_then(|ended| ended.kept) {
        Some((guest, inside)) => ending::lose_both(&lab, &mut pair, guest, inside, &mut random),
        None => Ok(()),
    }
}

/// One fault, and everything well again.
fn round(
    lab: &Lab,
    pair: &mut Pair,
    client: &mut Client,
    fault: Fault,
    random: &mut StdRng,
    report: &mut Report,
) -> Result<(), SoakError> {
    thread::sleep(Duration::from_millis(random.random_range(0..300)));
    client.take_gap();
    let acknowledged = client.acknowledged();
    let moved = fault.strike(lab, pair, random)?;
    client.wait_served()?;
    let gap = client.take_gap();
    if fault == Fault::Kill {
        client.check_loss(lab, pair, acknowledged)?;
    }
    fault.repair(lab, pair)?;
    pair.wait_protected()?;
    client.wait_served()?;
    client.check_inside()?;
    report.add(fault, moved, gap);
    Ok(())
}
