//! A running lab host, and the processes in it.

use crate::machine::{self, LIMIT, Machine, MachineError};
use crate::state::{State, StateError};
use crate::switch::Switch;
use crate::wire::{self, Frame, Kind};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::take;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Why a host did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No saved state, or it cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine does not answer.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its Ethernet cannot be plugged in.
    #[error("Cannot join lab{host} to the other hosts")]
    Join {
        /// Number of the host.
        host: usize,
        /// Why not.
        source: io::Error,
    },
    /// A process could not be started, or a file not written.
    #[error("lab{host} cannot run or write {name}: {reason}")]
    Refused {
        /// Number of the host.
        host: usize,
        /// Program or file.
        name: String,
        /// What the host said.
        reason: String,
    },
    /// The machine has ended, or its agent.
    #[error("lab{host} was lost; its console says:\n{console}\n")]
    Lost {
        /// Number of the host.
        host: usize,
        /// All of it.
        console: String,
    },
    /// It takes too long.
    #[error(
        "{what} did not come to its end on lab{host} in {limit:?}; so far:\n{so_far}\nthe console says:\n{console}\n"
    )]
    TooLong {
        /// Number of the host.
        host: usize,
        /// The program.
        what: String,
        /// How long it was waited for.
        limit: Duration,
        /// What it has printed.
        so_far: String,
        /// All of the console.
        console: String,
    },
}

/// Where the agent's answers for each process go.
type Waiting = Arc<Mutex<HashMap<u32, Sender<(Kind, Vec<u8>)>>>>;

/// A machine of its own with the files of this one, in which processes run as root. What they write is gone with it.
/// Dropping it ends it.
#[derive(Debug)]
pub struct Host {
    number: usize,
    machine: Mutex<Machine>,
    port: Mutex<UnixStream>,
    waiting: Waiting,
    last: Mutex<u32>,
    /// Ends with the machine.
    reader: Mutex<Option<JoinHandle<()>>>,
    state: State,
    switch: Arc<Switch>,
}

impl Host {
    /// Restores a machine, and tells it that it is `number`.
    pub(crate) fn start(state: &State, number: usize, switch: &Arc<Switch>) -> Result<Host, HostError> {
        let machine = state.restore(machine::new_disk()?)?;
        let waiting = Waiting::default();
        let (port, reader) = connect(&machine, state, number, &waiting)?;
        let host = Host {
            number,
            machine: Mutex::new(machine),
            port: Mutex::new(port),
            reader: Mutex::new(Some(reader)),
            waiting,
            last: Mutex::new(0),
            state: state.clone(),
            switch: Arc::clone(switch),
        };
        host.plug_in()?;
        Ok(host)
    }

    /// Ends it as [`Host::kill`] does and starts it again, with the disk as it was left; nothing else is left.
    pub fn start_again(&self) -> Result<(), HostError> {
        self.kill();
        let disk = self.machine().disk()?;
        let machine = self.state.restore(disk)?;
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits for the machine that was hears that it is lost, before somebody waits for this one.
        if let Some(old) = reader.take() {
            let _ = old.join();
        }
        let (port, new) = connect(&machine, &self.state, self.number, &self.waiting)?;
        (*self.machine(), *reader) = (machine, Some(new));
        *self.port.lock().unwrap_or_else(PoisonError::into_inner) = port;
        self.plug_in()
    }

    fn plug_in(&self) -> Result<(), HostError> {
        let Some(end) = self.machine().ethernet.take() else { return Ok(()) };
        self.switch.join(self.number, end).map_err(|source| HostError::Join { host: self.number, source })
    }

    /// Its number, from 0: it is called labN.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its address, on eth0 with a prefix of 24 bits. IPv4 only.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, 10 + self.number as u8)
    }

    /// Runs a program to its end. Of `command` count the program, the arguments, the directory (`/` if none is set) and
    /// what is set in the environment; nothing is taken over from this process. Blocks, for five minutes at most.
    pub fn run(&self, command: &Command) -> Result<Output, HostError> {
        self.spawn(command)?.output()
    }

    /// Starts a program. Its standard input is a pipe, at its end only when [`Input::write`] says so.
    pub fn spawn(&self, command: &Command) -> Result<Process<'_>, HostError> {
        let mut words = vec![
            command.get_current_dir().map_or(&b"/"[..], |dir| dir.as_os_str().as_bytes()),
            command.get_program().as_bytes(),
        ];
        let count = command.get_args().len().to_string();
        words.push(count.as_bytes());
        words.extend(command.get_args().map(OsStr::as_bytes));
        let set = command.get_envs().filter_map(|(name, value)| Some((name.as_bytes(), value?.as_bytes())));
        let pairs = set.map(|(name, value)| [name, b"=", value].concat()).collect::<Vec<_>>();
        words.extend(pairs.iter().map(Vec::as_slice));
        self.ask(command.get_program(), Kind::Start, &wire::pack(words))
    }

    /// Writes a file, with the directories above it. `mode`: its permissions.
    pub fn put(&self, path: &Path, contents: &[u8], mode: u32) -> Result<(), HostError> {
        let mode = format!("{mode:o}");
        let words = [path.as_os_str().as_bytes(), mode.as_bytes(), contents];
        self.ask(path.as_os_str(), Kind::Put, &wire::pack(words))?.output().map(drop)
    }

    /// Ends the host at once, as if its power had failed.
    pub fn kill(&self) {
        self.machine().kill();
    }

    /// Plugs its network cable in, or pulls it.
    pub fn link(&self, up: bool) -> Result<(), HostError> {
        Ok(self.machine().link(up)?)
    }

    /// What its kernel and its agent have said so far.
    pub fn console(&self) -> String {
        self.machine().console()
    }

    fn ask(&self, name: &OsStr, kind: Kind, payload: &[u8]) -> Result<Process<'_>, HostError> {
        let number = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last += 1;
            *last
        };
        let (sender, answers) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let name = name.to_string_lossy().into_owned();
        let input = Input { host: self, number };
        let process = Process { input, name, answers, output: Vec::new(), errors: Vec::new() };
        input.send(kind, payload)?;
        Ok(process)
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> HostError {
        HostError::Lost { host: self.number, console: self.console() }
    }
}

/// Tells a machine who it is; its agent's port then, and the thread that reads it.
fn connect(
    machine: &Machine,
    state: &State,
    number: usize,
    waiting: &Waiting,
) -> Result<(UnixStream, JoinHandle<()>), HostError> {
    let step = "Telling a restored lab host who it is";
    let connected = || -> io::Result<_> {
        let mut port = machine.port.try_clone()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let agent = env!("AVENTINE_LAB_AGENT");
        let who = format!("{number} {now}\n{agent}\n{}\n", state.modules.display());
        io::Write::write_all(&mut port, who.as_bytes())?;
        match wire::receive(&mut port)?.kind {
            Kind::Ready => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        port.set_read_timeout(None)?;
        let (from, to) = (port.try_clone()?, Arc::clone(waiting));
        let reader = thread::Builder::new().name(format!("lab{number}"));
        Ok((port, reader.spawn(move || distribute(from, &to))?))
    };
    Ok(connected().map_err(|source| machine.silent(step, source))?)
}

/// Ends with the machine; nobody waits for anything then.
fn distribute(mut port: UnixStream, waiting: &Waiting) {
    while let Ok(Frame { number, kind, payload }) = wire::receive(&mut port) {
        let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.get(&number) {
            // Nobody may want to know any more.
            let _ = sender.send((kind, payload));
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// One of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Errors,
}

/// A process's standard input.
#[derive(Clone, Copy, Debug)]
pub struct Input<'h> {
    host: &'h Host,
    number: u32,
}

impl Input<'_> {
    /// Writes; nothing at all is the end of the input.
    pub fn write(&self, bytes: &[u8]) -> Result<(), HostError> {
        self.send(Kind::Input, bytes)
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), HostError> {
        let port = self.host.port.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&*port, self.number, kind, payload).map_err(|_| self.host.lost())
    }
}

/// A process on a host. It runs on when this is dropped.
#[derive(Debug)]
pub struct Process<'h> {
    input: Input<'h>,
    name: String,
    answers: Receiver<(Kind, Vec<u8>)>,
    output: Vec<u8>,
    errors: Vec<u8>,
}

/// What happens to a process.
enum News {
    Said(Stream, Vec<u8>),
    Ended(ExitStatus),
}

impl<'h> Process<'h> {
    /// Its standard input.
    pub fn input(&self) -> Input<'h> {
        self.input
    }

    /// Kills it and the processes of its group.
    pub fn kill(&self) -> Result<(), HostError> {
        self.input.send(Kind::Kill, &[])
    }

    /// Waits until it has ended and all who hold its output have closed it. Blocks, for five minutes at most.
    pub fn output(mut self) -> Result<Output, HostError> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.keep_next(end)? {
                let (stdout, stderr) = (take(&mut self.output), take(&mut self.errors));
                return Ok(Output { status, stdout, stderr });
            }
        }
    }

    /// Waits until `text` is in its standard output or standard error. Blocks, for five minutes at most; an end of the
    /// process without it is an error.
    pub fn wait_for(&mut self, text: &str) -> Result<(), HostError> {
        let end = Instant::now() + LIMIT;
        let found = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        while !found(&self.output) && !found(&self.errors) {
            if let Some(status) = self.keep_next(end)? {
                let reason = format!("it ended ({status}) without saying \"{text}\":\n{}", self.so_far());
                return Err(self.refused(reason));
            }
        }
        Ok(())
    }

    /// Hands over what it prints, as it does, until it ends. Blocks, without a limit.
    pub fn follow(self, mut show: impl FnMut(Stream, &[u8])) -> Result<ExitStatus, HostError> {
        loop {
            let news = self.answers.recv().map_err(|_| self.input.host.lost())?;
            match self.news(news)? {
                News::Said(stream, bytes) => show(stream, &bytes),
                News::Ended(status) => return Ok(status),
            }
        }
    }

    /// Takes the next thing that happens; answers how it ended, if it did.
    fn keep_next(&mut self, end: Instant) -> Result<Option<ExitStatus>, HostError> {
        let left = end.saturating_duration_since(Instant::now());
        let news = self.answers.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Disconnected => self.input.host.lost(),
            RecvTimeoutError::Timeout => HostError::TooLong {
                host: self.input.host.number,
                what: self.name.clone(),
                limit: LIMIT,
                so_far: self.so_far(),
                console: self.input.host.console(),
            },
        })?;
        match self.news(news)? {
            News::Said(Stream::Output, mut bytes) => self.output.append(&mut bytes),
            News::Said(Stream::Errors, mut bytes) => self.errors.append(&mut bytes),
            News::Ended(status) => return Ok(Some(status)),
        }
        Ok(None)
    }

    fn news(&self, (kind, bytes): (Kind, Vec<u8>)) -> Result<News, HostError> {
        match kind {
            Kind::Output => Ok(News::Said(Stream::Output, bytes)),
            Kind::Errors => Ok(News::Said(Stream::Errors, bytes)),
            Kind::Ended => {
                let raw = bytes.try_into().map_or(-1, i32::from_le_bytes);
                Ok(News::Ended(ExitStatus::from_raw(raw)))
            }
            _ => Err(self.refused(String::from_utf8_lossy(&bytes).into_owned())),
        }
    }

    fn refused(&self, reason: String) -> HostError {
        HostError::Refused { host: self.input.host.number, name: self.name.clone(), reason }
    }

    fn so_far(&self) -> String {
        [&self.output, &self.errors].map(|bytes| String::from_utf8_lossy(bytes)).concat()
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let mut waiting = self.input.host.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.input.number);
    }
}
