//! Shells in the lab, one on each host. Keys go to one of them; Ctrl-] chooses the next.

use aventine_lab::{HostError, Input, Lab, LabError, Stream};
use std::io::{self, IsTerminal, Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{process, thread};

/// Why there is no shell, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("Cannot use this terminal (with `stty`)")]
    Terminal(#[source] io::Error),
}

/// Ctrl-].
const NEXT: u8 = 0x1d;

/// Starts `count` hosts and a shell on each, and ends this process when one of the shells ends. A script on standard input
/// runs on the first host.
pub(crate) fn shell(count: usize) -> Result<(), ShellError> {
    let lab = Lab::start(count)?;
    let terminal = Terminal::take().map_err(ShellError::Terminal)?;
    let line = match &terminal {
        Some(Terminal { size, .. }) => format!("exec script -q -c 'stty {size}; exec bash -i' /dev/null"),
        None => "exec bash -s".to_owned(),
    };
    if terminal.is_some() && count > 1 {
        print!("Ctrl-] goes to the next host.\r\n");
    }
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env("TERM", "xterm");
    let shells = lab.hosts.iter().map(|host| host.spawn(&command)).collect::<Result<Vec<_>, _>>()?;
    let inputs = shells.iter().map(aventine_lab::Process::input).collect::<Vec<_>>();
    let shown = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (number, shell) in shells.into_iter().enumerate() {
            let (shown, terminal) = (&shown, &terminal);
            scope.spawn(move || {
                let ended = shell.follow(|stream, bytes| {
                    if shown.load(Relaxed) == number {
                        show(stream, bytes);
                    }
                });
                if let Some(terminal) = terminal {
                    terminal.give_back();
                }
                // The hosts end with this process.
                match ended {
                    Ok(status) => process::exit(status.code().unwrap_or(1)),
                    Err(error) => {
                        eprintln!("{}", aventine_lab::chain(&error));
                        process::exit(1);
                    }
                }
            });
        }
        keys(&inputs, &shown)
    })
}

/// Until standard input ends; then so does the shell.
fn keys(inputs: &[Input<'_>], shown: &AtomicUsize) -> Result<(), ShellError> {
    let mut buffer = [0; 1024];
    loop {
        let bytes = match io::stdin().read(&mut buffer).map_err(ShellError::Terminal)? {
            0 => return Ok(inputs[shown.load(Relaxed)].write(b"")?),
            length => &buffer[..length],
        };
        for (at, keys) in bytes.split(|&key| key == NEXT).enumerate() {
            if at > 0 {
                let next = (shown.load(Relaxed) + 1) % inputs.len();
                shown.store(next, Relaxed);
                show(Stream::Output, format!("\r\nlab{next}\r\n").as_bytes());
            }
            if !keys.is_empty() {
                inputs[shown.load(Relaxed)].write(keys)?;
            }
        }
    }
}

/// What cannot be shown has nobody to see it.
fn show(stream: Stream, bytes: &[u8]) {
    let _ = match stream {
        Stream::Output => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Stream::Errors => io::stderr().write_all(bytes),
    };
}

/// A terminal that passes on every key as it is.
struct Terminal {
    before: String,
    /// As `stty` takes it.
    size: String,
}

impl Terminal {
    /// `None`: standard input is none.
    fn take() -> io::Result<Option<Terminal>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let size = stty(&["size"])?;
        let (rows, columns) = size.split_once(' ').unwrap_or(("24", "80"));
        let terminal = Terminal { before: stty(&["-g"])?, size: format!("rows {rows} columns {columns}") };
        stty(&["raw", "-echo"])?;
        Ok(Some(terminal))
    }

    fn give_back(&self) {
        if let Err(error) = stty(&[&self.before]) {
            eprintln!("The terminal is not as it was; `stty sane` helps: {error}");
        }
    }
}

fn stty(words: &[&str]) -> io::Result<String> {
    let output = Command::new("stty").args(words).stdin(process::Stdio::inherit()).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
