//! Runs in a lab host and starts the processes it is told to start. Its standard input and output are the port to the
//! test. It has nothing but the standard library: the library's build script builds it, too.
//!
//! For each process one thread copies standard output, one standard error, and one feeds standard input. A process has
//! ended when it was waited for and all holders of its output have closed it.
#![forbid(unsafe_code)]

#[path = "../wire.rs"]
mod wire;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{str, thread};
use wire::{Frame, Kind};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process as the agent keeps it.
struct Running {
    id: u32,
    input: Sender<Vec<u8>>,
}

#[derive(Clone)]
struct Agent {
    port: Arc<Mutex<fs::File>>,
    running: Arc<Mutex<HashMap<u32, Running>>>,
}

fn main() -> io::Result<()> {
    // Not through `stdout`, which would look at what it writes for line ends.
    let port = io::stdout().as_fd().try_clone_to_owned()?;
    let agent = Agent { port: Arc::new(Mutex::new(port.into())), running: Arc::default() };
    agent.tell(0, Kind::Ready, &[]);
    let stdin: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let mut stdin = fs::File::from(stdin);
    loop {
        let Frame { number, kind, payload } = wire::receive(&mut stdin)?;
        agent.handle(number, kind, payload);
    }
}

impl Agent {
    fn handle(&self, number: u32, kind: Kind, payload: Vec<u8>) {
        let done = match kind {
            Kind::Start => self.start(number, &payload),
            Kind::Put => put(&payload).map(|()| self.tell(number, Kind::Ended, &0_i32.to_le_bytes())),
            Kind::Input => {
                self.with(number, |running| drop(running.input.send(payload)));
                Ok(())
            }
            Kind::Kill => {
                self.with(number, |running| kill(running.id));
                Ok(())
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        if let Err(error) = done {
            self.tell(number, Kind::Failed, error.to_string().as_bytes());
        }
    }

    fn with(&self, number: u32, act: impl FnOnce(&Running)) {
        // A process that has ended meanwhile takes no input and no signals.
        if let Some(running) = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            act(running);
        }
    }

    fn start(&self, number: u32, payload: &[u8]) -> io::Result<()> {
        let words = wire::unpack(payload).ok_or(io::ErrorKind::InvalidData)?;
        let mut command = command(&words).ok_or(io::ErrorKind::InvalidData)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (input, received) = channel();
        let running = Running { id: child.id(), input };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(number, running);
        let stdin = child.stdin.take();
        thread::spawn(move || stdin.map(|stdin| feed(stdin, &received)));
        let agent = self.clone();
        thread::spawn(move || agent.attend(number, child));
        Ok(())
    }

    /// Brings back what a process prints, and how it ends.
    fn attend(&self, number: u32, mut child: Child) {
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(|| errors.map(|errors| self.copy(number, Kind::Errors, errors)));
            output.map(|output| self.copy(number, Kind::Output, output))
        });
        let ended = child.wait();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        match ended {
            Ok(status) => self.tell(number, Kind::Ended, &status.into_raw().to_le_bytes()),
            Err(error) => self.tell(number, Kind::Failed, error.to_string().as_bytes()),
        }
    }

    fn copy(&self, number: u32, kind: Kind, mut from: impl Read) {
        let mut buffer = [0; 32 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            self.tell(number, kind, &buffer[..length]);
        }
    }

    /// Without a port there is nobody left to tell anything.
    fn tell(&self, number: u32, kind: Kind, payload: &[u8]) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = wire::send(&mut *port, number, kind, payload) {
            eprintln!("The lab's agent lost its port: {error}");
        }
    }
}

/// See [`Kind::Start`].
fn command(words: &[&[u8]]) -> Option<Command> {
    let [directory, program, count, rest @ ..] = words else { return None };
    let count = str::from_utf8(count).ok()?.parse().ok()?;
    let (arguments, environment) = rest.split_at_checked(count)?;
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|word| OsStr::from_bytes(word)));
    command.env_clear().envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "linux")]);
    for pair in environment {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        command.env(OsStr::from_bytes(&pair[..at]), OsStr::from_bytes(&pair[at + 1..]));
    }
    command.current_dir(OsStr::from_bytes(directory));
    Some(command)
}

/// See [`Kind::Put`].
fn put(payload: &[u8]) -> io::Result<()> {
    let words = wire::unpack(payload);
    let Some([path, mode, contents]) = words.as_deref() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mode = str::from_utf8(mode).ok().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let mode = mode.ok_or(io::ErrorKind::InvalidData)?;
    let path = Path::new(OsStr::from_bytes(path));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, contents)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A process that closes its input early is not interested.
fn feed(mut stdin: impl Write, received: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = received.recv() {
        if bytes.is_empty() || stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// The group of a process. The shell has `kill` built in.
fn kill(id: u32) {
    let killed = Command::new("/bin/sh").args(["-c", &format!("kill -KILL -{id}")]).status();
    if let Err(error) = killed {
        eprintln!("The lab's agent cannot kill {id}: {error}");
    }
}
