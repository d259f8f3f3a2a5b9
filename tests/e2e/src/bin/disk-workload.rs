//! Runs in the guest: serves one client at a time on port 7777, a line for each line.
//!
//! | request | answer |
//! |---|---|
//! | `put` | `done N`: a burst of writes up to N is on stable storage |
//! | `verify` | `same N`: the disk is as writes 1 to N left it; or `differs …` |
#![forbid(unsafe_code)]

use aventine_e2e::workload::Workload;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

const PORT: u16 = 7777;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("Usage: disk-workload DISK");
        return ExitCode::FAILURE;
    };
    match serve(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The disk workload failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> io::Result<()> {
    let mut workload = Workload::open(path)?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    loop {
        let (stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        // A client that fails is followed by the next; a disk that fails ends it all.
        while matches!(reader.read_line(&mut line), Ok(1..)) {
            let answer = answer(&mut workload, line.trim())?;
            line.clear();
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    }
}

fn answer(workload: &mut Workload, request: &str) -> io::Result<String> {
    Ok(match request {
        "put" => format!("done {}\n", workload.burst()?),
        "verify" => match workload.verify()? {
            None => format!("same {}\n", workload.last()),
            Some(difference) => format!("differs {difference:?}\n"),
        },
        other => format!("unknown request {other:?}\n"),
    })
}
