//! `cargo xtask`: what has to be there before the demo and the tests can run, and running them.
//!
//! ```text
//! cargo xtask demo [--loaded] [options of `aventine demo`]
//! cargo xtask test [options of the test runner]
//! cargo xtask soak [options of `aventine-soak`]
//! cargo xtask fuzz [--seconds N] [TARGET…]
//! cargo xtask lab shell [--hosts N]
//! ```
#![forbid(unsafe_code)]

mod fuzz;
mod guest;
mod lab;
mod machine;

use aventine_examples::{BuildError, EXAMPLES};
use aventine_lab::run::{self, RunError};
use aventine_lab::state::{State, StateError};
use fuzz::FuzzError;
use guest::GuestError;
use lab::ShellError;
use machine::MachineError;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{error, fs, iter};

const USAGE: &str = "\
Usage: cargo xtask COMMAND [OPTIONS]

Commands:
  demo   install what is missing, build, make the guest and run `aventine demo` with the OPTIONS; with --loaded every
         plugin is a shared object
  test   install what is missing, build, make the guest and run all tests, with the test runner's OPTIONS
  soak   install what is missing, build, make the guest and have it survive random faults: --minutes N or --rounds N,
         --faults kill,cut,…, --workload redis or sqlite, --seed N, --report FILE; `cargo xtask soak --help` tells all
  fuzz   install what is missing, build, and run all fuzz targets or the TARGETs named, 10 seconds each or --seconds N
  lab    shell [--hosts N]: start 1 to 3 machines with Debian's kernel and a shell on each, in which this machine's files
         are seen and nothing of it is changed";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{USAGE}")]
    Usage,
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Fuzz(#[from] FuzzError),
    #[error(transparent)]
    Example(#[from] BuildError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Lab(#[from] StateError),
    #[error(transparent)]
    Shell(#[from] ShellError),
    #[error("Cannot prepare {}", path.display())]
    Files { path: PathBuf, source: std::io::Error },
    #[error("Cannot start {program}")]
    Start { program: PathBuf, source: std::io::Error },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next();
    let rest = arguments.collect::<Vec<_>>();
    let result = match command.as_ref().and_then(|command| command.to_str()) {
        Some("demo") => demo(&rest),
        Some("test") => test(&rest),
        Some("soak") => soak(&rest),
        Some("fuzz") => fuzz::fuzz(&rest).map_err(Error::from),
        Some("lab") => lab(&rest),
        Some("help" | "-h" | "--help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(Error::Usage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = iter::successors(error::Error::source(&error), |cause| cause.source());
            let causes = causes.map(|cause| format!(": {cause}")).collect::<String>();
            eprintln!("{error}{causes}");
            ExitCode::FAILURE
        }
    }
}

/// Ends by becoming `aventine demo`. With `--loaded` the plugins are shared objects, every one of them.
fn demo(options: &[OsString]) -> Result<(), Error> {
    let mut options = options.to_vec();
    machine::install(machine::DEMO)?;
    cargo(&["build", "--package", "aventine"])?;
    if let Some(at) = options.iter().position(|option| option == "--loaded") {
        cargo(&["build", "--package", "aventine-so", "--examples"])?;
        options.splice(at..=at, ["--plugins".into(), built_in_plugins()?.into()]);
    }
    let guest = guest::make()?;
    let program = target().join("debug/aventine");
    let mut demo = Command::new(&program);
    demo.arg("demo").arg("--kernel").arg(guest.kernel).arg("--initrd").arg(guest.initrd);
    demo.arg("--work").arg(target().join("demo")).args(options);
    Err(Error::Start { program, source: demo.exec() })
}

/// The directory with the shared objects of the built-in plugins, and nothing else.
fn built_in_plugins() -> Result<PathBuf, Error> {
    let (from, to) = (target().join("debug/examples"), target().join("plugins"));
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Files { path, source }
    };
    fs::create_dir_all(&to).map_err(at(&to))?;
    for file in fs::read_dir(&from).map_err(at(&from))?.flatten() {
        let name = file.file_name();
        let text = name.to_string_lossy();
        // Those with a dash are the compiler's own names.
        if text.starts_with("libaventine_") && text.ends_with(".so") && !text.contains('-') {
            let plugin = to.join(&name);
            // Not into a file that a program may have loaded.
            let _ = fs::remove_file(&plugin);
            fs::copy(file.path(), &plugin).map_err(at(&plugin))?;
        }
    }
    Ok(to)
}

/// Ends by becoming the test runner.
fn test(options: &[OsString]) -> Result<(), Error> {
    machine::install(machine::DEMO)?;
    machine::install(machine::LAB)?;
    machine::install(machine::SOAK)?;
    machine::install(machine::TESTS)?;
    // As the test runner does it, the program and the shared objects included, so that it finds everything built.
    cargo(&["test", "--no-run", "--workspace"])?;
    EXAMPLES.iter().try_for_each(|example| aventine_examples::build(example).map(drop))?;
    let guest = guest::make()?;
    let guest = guest::with_program(&guest, &target().join("debug/guest-workload"))?;
    let (sqlite, fio) = (guest::tool("sqlite3")?, guest::tool("fio")?);
    // Here rather than in the first test that needs it, which would take the longer for it.
    State::make()?;
    let mut runner = as_root(Path::new(&cargo_program()));
    match run::find("cargo-nextest") {
        Some(_) => runner.args(["nextest", "run", "--workspace"]),
        None => runner.args(["test", "--workspace"]),
    };
    runner.args(options).current_dir(root());
    runner.env("AVENTINE_PROGRAM", target().join("debug/aventine"));
    runner.env("AVENTINE_SHARED_OBJECTS", target().join("debug/examples"));
    runner.env("AVENTINE_PLUGINS", built_in_plugins()?);
    runner.env("AVENTINE_KERNEL", guest.kernel).env("AVENTINE_INITRD", guest.initrd);
    runner.env("AVENTINE_SQLITE", sqlite).env("AVENTINE_FIO", fio);
    // For `cargo test`; nextest has a configuration that knows which tests must be alone.
    runner.env("AVENTINE_WORK", target().join("e2e")).env("RUST_TEST_THREADS", "1");
    Err(Error::Start { program: runner.get_program().into(), source: runner.exec() })
}

/// Ends by becoming the soak test.
fn soak(options: &[OsString]) -> Result<(), Error> {
    machine::install(machine::DEMO)?;
    machine::install(machine::SOAK)?;
    cargo(&["build", "--package", "aventine", "--package", "aventine-soak", "--package", "aventine-e2e"])?;
    let guest = guest::with_program(&guest::make()?, &target().join("debug/guest-workload"))?;
    let program = target().join("debug/aventine-soak");
    let mut soak = as_root(&program);
    soak.arg("--program").arg(target().join("debug/aventine")).arg("--kernel").arg(guest.kernel);
    soak.arg("--initrd").arg(guest.initrd).arg("--tools").arg(guest::tool("sqlite3")?);
    soak.arg("--work").arg(target().join("soak")).args(options);
    Err(Error::Start { program, source: soak.exec() })
}

/// Network namespaces take root, or a user namespace in which this user is root.
fn as_root(program: &Path) -> Command {
    if machine::is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(program);
    command
}

/// Shells in the lab.
fn lab(words: &[OsString]) -> Result<(), Error> {
    let words = words.iter().map(|word| word.to_str()).collect::<Option<Vec<_>>>().ok_or(Error::Usage)?;
    let hosts = match words.as_slice() {
        ["shell"] => 1,
        ["shell", "--hosts", count] => count.parse().map_err(|_| Error::Usage)?,
        _ => return Err(Error::Usage),
    };
    machine::install(machine::DEMO)?;
    machine::install(machine::LAB)?;
    Ok(lab::shell(hosts)?)
}

fn cargo(arguments: &[&str]) -> Result<(), RunError> {
    run::run(Command::new(cargo_program()).args(arguments).current_dir(root()))
}

fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The workspace.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}
