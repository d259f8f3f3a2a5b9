//! Runs in the guest: serves one client at a time on port 7777, a line for each line.
//!
//! | request | answer |
//! |---|---|
//! | `put` | `done N`: a burst of writes up to N is on stable storage; or `failed …` |
//! | `verify` | `same N`: the disk is as writes 1 to N left it; or `differs …` |
//! | `dirty N` | `dirtying N`: from now on N pages of memory are written over and over |
//! | `passes` | `passed N`: they were, N times; or `broken`: a page was not as it had been left |
//! | `panic` | none: the kernel panics |
//! | `reboot` | none: the machine is reset |
#![forbid(unsafe_code)]

use aventine_e2e::disk::Workload;
use aventine_e2e::memory::Dirtying;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

const PORT: u16 = 7777;
/// What is written there the kernel does at once.
const TRIGGER: &str = "/proc/sysrq-trigger";

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("Usage: guest-workload DISK");
        return ExitCode::FAILURE;
    };
    match serve(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The workload failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> io::Result<()> {
    let mut workload = Workload::open(path)?;
    let mut dirtying = Dirtying::default();
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    loop {
        let (stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        // A client that fails is followed by the next.
        while matches!(reader.read_line(&mut line), Ok(1..)) {
            let answer = answer(&mut workload, &mut dirtying, line.trim());
            let answer = answer.unwrap_or_else(|error| format!("failed {error}"));
            line.clear();
            if writeln!(reader.get_mut(), "{answer}").is_err() {
                break;
            }
        }
    }
}

fn answer(workload: &mut Workload, dirtying: &mut Dirtying, request: &str) -> io::Result<String> {
    let (verb, number) = request.split_once(' ').unwrap_or((request, ""));
    Ok(match (verb, number.parse::<usize>()) {
        ("put", _) => format!("done {}", workload.burst()?),
        ("verify", _) => match workload.verify()? {
            None => format!("same {}", workload.last()),
            Some(difference) => format!("differs {difference:?}"),
        },
        ("dirty", Ok(pages)) => {
            *dirtying = Dirtying::start(pages);
            format!("dirtying {pages}")
        }
        ("passes", _) => dirtying.passes().map_or("broken".into(), |passes| format!("passed {passes}")),
        ("panic", _) => std::fs::write(TRIGGER, "c").map(|()| "the kernel lives".into())?,
        ("reboot", _) => std::fs::write(TRIGGER, "b").map(|()| "the machine runs on".into())?,
        _ => format!("unknown request {request:?}"),
    })
}
