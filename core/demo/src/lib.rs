//! The demonstration and its checker: a Redis guest that survives its host.
//!
//! [`run`] is `aventine demo`. The rest serves the end-to-end tests as well: [`network`] makes two hosts and a client
//! out of network namespaces, [`lab`] a protected guest on them, [`checker`] is the client that knows what it was
//! promised.

pub mod checker;
pub mod lab;
pub mod network;
pub mod node;
mod record;
mod report;
pub mod vm;

use checker::{CheckError, Load};
use lab::{Lab, LabError, Pair, Parts};
use node::NodeError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
pub use record::{EPOCHS, Recorded, record};
use report::{Report, Round};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How often QEMU's own pause, save and resume are timed.
const FLOOR_ROUNDS: u32 = 21;
/// The host is lost after the client has written for this long, in milliseconds.
const LIFE_MS: std::ops::Range<u64> = 1000..3000;
/// Answers from the standby's guest before everything is read back.
const AFTERWARDS: u64 = 1000;
/// Longest that these may take.
const ANSWERS: Duration = Duration::from_secs(60);

/// The address of the only guest.
const GUEST: &str = network::GUESTS[0];

/// What the demo is told.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How often the host is lost.
    pub rounds: u32,
    /// Decides the moments; a random one is told in the report.
    pub seed: Option<u64>,
    /// Time between two epochs, as the configuration writes it.
    pub interval: String,
    /// Prints one JSON object instead of a table.
    pub json: bool,
    /// Afterwards protects another guest and leaves it running until Ctrl-C.
    pub keep: bool,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// Directory for images, state and logs.
    pub work: PathBuf,
    /// The shared objects in this directory have the plugins; none that is built in is used.
    pub plugins: Option<PathBuf>,
    /// A file with tables that take the place of the configuration's own.
    pub tables: Option<PathBuf>,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Neither root nor a user namespace.
    #[error("Cannot make a user namespace with `unshare`: run the demo as root")]
    Privilege(#[source] io::Error),
    /// The own program file is not known.
    #[error("Cannot find the running program's file")]
    Program(#[source] io::Error),
    /// The tables could not be read.
    #[error("Cannot read {}", file.display())]
    Tables {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The hosts failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The client failed.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The report could not be written.
    #[error("Cannot write the report")]
    Report(#[from] serde_json::Error),
}

impl From<NodeError> for DemoError {
    fn from(error: NodeError) -> Self {
        DemoError::Lab(error.into())
    }
}

/// Shows the demo; `true`: nothing was lost. Blocks until it is over; with `keep`, until the program is interrupted.
/// Progress goes to standard error, the report to standard output.
///
/// Without root it first starts the running program anew, with the same arguments, in a user namespace.
///
/// Processes die with this one and the network with them, however it ends; `work` keeps the logs.
pub fn run(options: &DemoOptions) -> Result<bool, DemoError> {
    become_root()?;
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1 << 32));
    let lab = Lab::new(&parts(options)?)?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("Round {number} of {}", options.rounds);
        rounds.push(round(&lab, &mut random)?);
    }
    let report = Report::new(seed, &rounds);
    match options.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("\n{report}"),
    }
    if options.keep {
        keep(&lab)?;
    }
    Ok(report.nothing_lost())
}

fn parts(options: &DemoOptions) -> Result<Parts, DemoError> {
    let read = |file: &PathBuf| {
        let tables = fs::read_to_string(file).and_then(|text| text.parse().map_err(io::Error::other));
        tables.map_err(|source| DemoError::Tables { file: file.clone(), source })
    };
    let tables = options.tables.as_ref().map(read).transpose()?.unwrap_or_default();
    Ok(Parts {
        program: std::env::current_exe().map_err(DemoError::Program)?,
        kernel: options.kernel.clone(),
        initrd: options.initrd.clone(),
        work: options.work.clone(),
        interval: options.interval.clone(),
        detection: "200ms".into(),
        plugins: options.plugins.clone(),
        tables,
        ..Parts::default()
    })
}

/// One guest from its start to the loss of its host and beyond.
fn round(lab: &Lab, random: &mut StdRng) -> Result<Round, DemoError> {
    eprintln!("  starting the guest on host a, its standby on host b");
    let mut pair = lab.start()?;
    let connection = checker::connect(lab.client(), GUEST, lab::STARTUP)?;
    eprintln!("  protected; a Redis client writes on one TCP connection");
    let load = Load::start(connection, random.random());
    let floor = pair.ask(|primary| primary.floor(FLOOR_ROUNDS))?;
    let (before, began) = (pair.ask(|primary| primary.status())?, Instant::now());
    thread::sleep(Duration::from_millis(random.random_range(LIFE_MS)));
    let (after, watched) = (pair.ask(|primary| primary.status())?, began.elapsed());
    eprintln!("  {} writes acknowledged; killing the primary's controller and QEMU", load.answers());
    let lost_at = Instant::now();
    pair.fail_over(random.random())?;
    eprintln!("  host b runs the guest after {} ms", lost_at.elapsed().as_millis());
    load.wait_answers(AFTERWARDS, ANSWERS)?;
    let outcome = load.finish(lab.client(), GUEST)?;
    for problem in &outcome.problems {
        eprintln!("  {problem}");
    }
    let connection = if outcome.broken { "the connection broke" } else { "same connection" };
    eprintln!("  {} writes read back, {} lost, {connection}", outcome.acknowledged, outcome.lost);
    let taken_over = pair.standby.status()?;
    Ok(Round {
        epochs: after.committed,
        watched: (after.committed - before.committed, watched),
        acknowledged: outcome.acknowledged,
        lost: outcome.lost,
        broken: outcome.broken,
        gap: outcome.gap,
        activation: taken_over.activation_us,
        pause: after.pause_us,
        commit: after.commit_us,
        floor,
        bytes_sent: after.bytes_sent,
    })
}

/// Protects a guest and says how to play with it.
fn keep(lab: &Lab) -> Result<(), DemoError> {
    let mut pair: Pair = lab.start()?;
    checker::connect(lab.client(), GUEST, lab::STARTUP)?;
    let status = pair.primary.status()?;
    let own = std::process::id();
    let enter = match in_user_namespace() {
        true => format!("nsenter --preserve-credentials --user=/proc/{own}/ns/user"),
        false => "nsenter".to_owned(),
    };
    let net = lab.network().client.path();
    eprintln!("A protected guest is left running. To play with it, from another shell:");
    eprintln!("  {enter} --net={} redis-cli -h {}", net.display(), GUEST);
    eprintln!("  kill -9 {} {}", pair.primary.pid(), status.guest_pid.unwrap_or_default());
    for (host, node) in [("a", &pair.primary), ("b", &pair.standby)] {
        eprintln!("  aventine status --state-dir {}   # host {host}", node.state_dir().display());
    }
    eprintln!("Ctrl-C ends it.");
    pair.primary.wait()?;
    pair.standby.wait()?;
    Ok(())
}

/// Network namespaces take root, or a user namespace in which this user is root.
fn become_root() -> Result<(), DemoError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(DemoError::Program)?;
    let arguments = std::env::args_os().skip(1);
    let error =
        Command::new("unshare").args(["--user", "--map-root-user", "--"]).arg(program).args(arguments).exec();
    Err(DemoError::Privilege(error))
}

/// Whether [`become_root`] has made this process what it is. The first namespace maps every user to itself.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2).is_some_and(|count| count != u32::MAX.to_string())
}
