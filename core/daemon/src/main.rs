//! The `aventine` program.
//!
//! Start reading at [`cli`] (what can be asked of it) and [`run`] (what a running side consists of).
#![forbid(unsafe_code)]

mod admin;
mod bench;
mod cli;
mod environment;
mod exit;
mod feed;
mod keys;
mod list;
mod output;
mod place;
mod progress;
mod query;
mod reclaim;
mod record;
mod replay;
mod run;
mod schema;
mod signals;
mod verify;

use aventine_api::Side;
use clap::Parser;
use cli::{Cli, Command};
use exit::Exit;
use output::{print, tell, tell_error};
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

// A crate that nothing refers to is left out of the program, and its registration with it.
use aventine_arbiter_command as _;
use aventine_arbiter_etcd as _;
use aventine_arbiter_manual as _;
use aventine_arbiter_shared_file as _;
use aventine_codec_raw as _;
use aventine_disk_block_remus as _;
use aventine_disk_drbd as _;
use aventine_guest_qemu as _;
use aventine_network_ifb as _;
use aventine_network_plug as _;
use aventine_network_userspace as _;
use aventine_policy_adaptive as _;
use aventine_policy_fixed as _;
use aventine_transport_file as _;
use aventine_transport_tcp as _;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are errors to clap too, with exit code 0. Its own code for the rest means something
            // else here.
            let _ = e.print();
            return if e.exit_code() == 0 { Exit::Done } else { Exit::Usage }.into();
        }
    };
    log_to_stderr();
    match cli.command {
        Command::Check { config, environment } => check(&config, environment),
        Command::Protect(args) => run::run(&args, Side::Primary),
        Command::Standby(args) => run::run(&args, Side::Standby),
        Command::Status { which, json } => query::status(&which, json),
        Command::Stop { which } => query::stop(&which),
        Command::Handover { which } => query::handover(&which),
        Command::Verify { which, report_only, json } => verify::verify(&which, !report_only, json),
        Command::Reclaim { run, json } => reclaim::reclaim(&run, json),
        Command::Plugins { command: Some(cli::Plugins::Inspect { file, json }), .. } => inspect(&file, json),
        Command::Plugins { command: None, config, json } => plugins(config.as_deref(), json),
        Command::Replay { file, standby: Some(config), json } => feed::feed(&file, &config, json),
        Command::Replay { file, standby: None, json } => replay::replay(&file, json),
        Command::Bench(what) => bench::bench(what),
        Command::Schema { plugin, config } => schema::schema(plugin.as_deref(), config.as_deref()),
        Command::Keys(args) => keys::keys(&args),
        Command::Demo(args) => demo(args),
    }
    .into()
}

fn log_to_stderr() {
    let wanted = std::env::var("AVENTINE_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let (filter, bad) = match wanted.as_deref().map(EnvFilter::try_new) {
        Ok(Ok(filter)) => (Some(filter), None),
        Ok(Err(e)) => (None, Some(e)),
        Err(_) => (None, None),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("warn,aventine=info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        // It would be told on stderr, and a stderr that has gone must not end the program.
        .log_internal_errors(false)
        .init();
    if let Some(e) = bad {
        tracing::warn!("AVENTINE_LOG or RUST_LOG is not a log filter: {e}");
    }
}

fn check(path: &Path, environment: bool) -> Exit {
    match run::load(path) {
        Ok(config) => {
            print(format_args!("{} is valid\n{}", path.display(), list::summary(&config)));
            if environment { environment::check(&config) } else { Exit::Done }
        }
        Err(exit) => exit,
    }
}

fn plugins(config: Option<&Path>, json: bool) -> Exit {
    // It stays loaded; what it sets up does not matter here.
    if let Some(Err(exit)) = config.map(run::load) {
        return exit;
    }
    print(list::plugins(json));
    Exit::Done
}

fn inspect(file: &Path, json: bool) -> Exit {
    match list::inspect(file, json) {
        Ok(plugins) => {
            print(plugins);
            Exit::Done
        }
        Err(e) => {
            tell_error(&e);
            Exit::Error
        }
    }
}

fn demo(args: cli::Demo) -> Exit {
    let cli::Demo { rounds, seed, interval, json, keep, kernel, initrd, work, record, plugins, tables } =
        args;
    let options = aventine_demo::DemoOptions {
        rounds,
        seed,
        interval,
        json,
        keep,
        kernel,
        initrd,
        work,
        plugins,
        tables,
    };
    if let Some(file) = record {
        return record::record(&options, &file);
    }
    match aventine_demo::run(&options) {
        Ok(true) => Exit::Done,
        Ok(false) => {
            tell("error: The demo lost something that the guest had promised");
            Exit::Error
        }
        Err(e) => {
            tell_error(&e);
            Exit::Error
        }
    }
}
