//! Runs in the guest: writes to the disk without pause and answers one client on port 7777, a line for each line.
//!
//! | request | answer |
//! |---|---|
//! | `put` | `done N`: write N is on stable storage |
//! | `verify` | `same N`: the disk is as writes 1 to N left it; or `differs …` |
#![forbid(unsafe_code)]

use aventine_e2e::workload::Workload;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
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

fn serve(path: &std::path::Path) -> io::Result<()> {
    let mut workload = Workload::open(path)?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    listener.set_nonblocking(true)?;
    let mut client: Option<BufReader<TcpStream>> = None;
    let mut line = String::new();
    loop {
        if let Some(stream) = unless_waiting(listener.accept())? {
            stream.0.set_nonblocking(true)?;
            client = Some(BufReader::new(stream.0));
            line.clear();
        }
        if let Some(reader) = &mut client {
            match unless_waiting(reader.read_line(&mut line)) {
                Ok(None) => {}
                Ok(Some(1..)) if line.ends_with('\n') => {
                    let answer = answer(&mut workload, line.trim())?;
                    line.clear();
                    // A few bytes always fit; a client that is gone is noticed by the next read.
                    let _ = reader.get_mut().write_all(answer.as_bytes());
                }
                _ => client = None,
            }
        }
        workload.write(false)?;
    }
}

fn answer(workload: &mut Workload, request: &str) -> io::Result<String> {
    Ok(match request {
        "put" => format!("done {}\n", workload.write(true)?),
        "verify" => match workload.verify()? {
            None => format!("same {}\n", workload.last()),
            Some(difference) => format!("differs {difference:?}\n"),
        },
        other => format!("unknown request {other:?}\n"),
    })
}

fn unless_waiting<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}
