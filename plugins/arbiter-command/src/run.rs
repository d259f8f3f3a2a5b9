//! One bounded run of the command.

use crate::config::Settings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a killed command may take to die.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// How much of the end of what it says is kept.
const TAIL_BYTES: usize = 2048;
const TAIL_LINES: usize = 5;

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("The arbiter's command {} is not there", program.display())]
    Missing { program: PathBuf },
    #[error(
        "The arbiter's command {} cannot be run: the interpreter that its first line names is not there",
        program.display()
    )]
    Interpreter { program: PathBuf },
    #[error("The arbiter's command {} cannot be run", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("The arbiter's command {} could not be watched, and was killed", program.display())]
    Watch { program: PathBuf, source: io::Error },
    #[error("The arbiter's command {} was killed after {timeout:?}{}", program.display(), crate::shown(.said))]
    TimedOut { program: PathBuf, timeout: Duration, said: String },
    #[error("The arbiter's command {} was killed earlier and has not died yet (process {pid})", program.display())]
    Stuck { program: PathBuf, pid: u32 },
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The last lines of its standard error, on one line.
    pub(crate) said: String,
}

/// Runs the command.
pub(crate) struct Runner {
    program: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
    timeout: Duration,
    /// Killed, and not yet dead.
    stuck: Option<Child>,
}

impl Runner {
    /// Paths are meant from `dir`; a name alone is looked up in `PATH`.
    pub(crate) fn new(settings: Settings, dir: &Path) -> Runner {
        let Settings { program, arguments, timeout } = settings;
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let program = if program.contains('/') { dir.join(program) } else { program.into() };
        Runner { program, arguments, dir, timeout, stuck: None }
    }

    pub(crate) fn program(&self) -> String {
        self.program.display().to_string()
    }

    /// Runs it to its end with `told` in its environment. Blocks for the timeout and [`GRACE`] at most.
    pub(crate) fn run(&mut self, told: &[(&str, String)]) -> Result<Ended, RunError> {
        if let Some(child) = &mut self.stuck {
            if let Ok(None) = child.try_wait() {
                return Err(RunError::Stuck { program: self.program.clone(), pid: child.id() });
            }
            self.stuck = None;
        }
        let deadline = Instant::now() + self.timeout;
        let (mut child, errors) = self.spawn(told)?;
        let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| Ok((watch(&pidfd, errors, deadline)?, pidfd)));
        // The group is this child's for certain only until the child is collected.
        let _already_gone = kill_process_group(Pid::from_child(&child), Signal::KILL);
        match watched {
            Ok(((in_time, said), pidfd)) => {
                if !is_ended(&pidfd, GRACE) {
                    self.stuck = Some(child);
                    return Err(self.timed_out(said));
                }
                let status = child.wait().map_err(|source| self.unwatched(source))?;
                if in_time { Ok(Ended { status, said }) } else { Err(self.timed_out(said)) }
            }
            Err(source) => {
                self.stuck = Some(child);
                Err(self.unwatched(source))
            }
        }
    }

    fn spawn(&self, told: &[(&str, String)]) -> Result<(Child, PipeReader), RunError> {
        let start = |source| RunError::Start { program: self.program.clone(), source };
        let (errors, its_errors) = io::pipe().map_err(start)?;
        rustix::io::ioctl_fionbio(&errors, true).map_err(|e| start(e.into()))?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.dir).process_group(0);
        command.env_remove("AVENTINE_SESSION").envs(told.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(its_errors);
        // SAFETY: the closure makes one system call and nothing else: no allocation, no lock.
        unsafe { command.pre_exec(close_others) };
        match command.spawn() {
            Ok(child) => Ok((child, errors)),
            Err(e) if e.kind() == ErrorKind::NotFound && self.dir.is_dir() => {
                let program = self.program.clone();
                let is_there = program.is_file();
                Err(if is_there { RunError::Interpreter { program } } else { RunError::Missing { program } })
            }
            Err(source) => Err(start(source)),
        }
    }

    fn timed_out(&self, said: String) -> RunError {
        RunError::TimedOut { program: self.program.clone(), timeout: self.timeout, said }
    }

    fn unwatched(&self, source: io::Error) -> RunError {
        RunError::Watch { program: self.program.clone(), source }
    }
}

/// Runs in the child between fork and exec: what this process was started with, or a library left open, is closed.
fn close_others() -> io::Result<()> {
    // At exec and not now: std tells of a failing exec through a descriptor of its own.
    // SAFETY: the call takes three numbers, and marks descriptors that nobody in the child uses after exec.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the process has ended or the time is over. Whether it has ended, and what it said.
fn watch(pidfd: &OwnedFd, errors: PipeReader, deadline: Instant) -> io::Result<(bool, String)> {
    let (mut tail, mut errors) = (Vec::new(), Some(errors));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(errors.as_ref().map(|e| PollFd::new(e, PollFlags::IN)));
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // Read first: of a process that has ended, everything it said is there.
        let ended = !fds[0].revents().is_empty();
        if let Some(open) = &mut errors
            && !read_available(open, &mut tail, deadline)?
        {
            errors = None;
        }
        if ended || left.is_zero() {
            return Ok((ended, last_lines(&tail)));
        }
    }
}

/// Reads what is there, and keeps its end. Whether more can come.
fn read_available(pipe: &mut PipeReader, tail: &mut Vec<u8>, deadline: Instant) -> io::Result<bool> {
    let mut piece = [0; TAIL_BYTES];
    // Another process may write without end.
    while Instant::now() < deadline {
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(len) => {
                tail.extend_from_slice(&piece[..len]);
                tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn is_ended(pidfd: &OwnedFd, limit: Duration) -> bool {
    let Ok(limit) = Timespec::try_from(limit) else { return false };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            found => return found == Ok(1),
        }
    }
}

/// For a message: the last lines that say something.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(TAIL_LINES)..].join(" / ");
    shown.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
