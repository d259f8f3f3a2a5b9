//! QEMU as a process: a child that cannot outlive this one, or one that was there before.
//!
//! ```text
//! fork ─► descriptors made inheritable ─► dies with its parent's thread ─► parent still there? ─► exec
//! ```
//! The kernel kills the child when the *thread* that made it ends, so that thread must live as long as the guest.
//! The child has a process group of its own: Ctrl-C at the terminal reaches this process, not the guest.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How much of the end of the log an error shows.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 8;
/// How long a killed process that is not a child may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Why QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("The program {program} is not there; on Debian: apt install qemu-system-x86")]
    Missing { program: String },
    #[error("Could not start {program}")]
    Spawn { program: String, source: io::Error },
    #[error("Could not write QEMU's log {}", path.display())]
    Log { path: PathBuf, source: io::Error },
}

/// A running or ended QEMU.
pub(crate) struct Process {
    pid: Pid,
    /// Names this very process, also after its number has been given to another.
    pidfd: OwnedFd,
    own: Option<Own>,
    killed: bool,
}

/// What is known of a QEMU that was started here. It is killed and collected on drop.
struct Own {
    child: Child,
    log: PathBuf,
}

/// What QEMU is started with.
pub(crate) struct Launch<'a> {
    /// Program and all arguments.
    pub(crate) command: Vec<String>,
    /// Its working directory.
    pub(crate) dir: &'a Path,
    /// Gets its standard output and error.
    pub(crate) log: PathBuf,
    /// Descriptors that it keeps, under the same numbers.
    pub(crate) inherit: Vec<BorrowedFd<'a>>,
}

impl Process {
    /// Starts QEMU. The calling thread must live as long as the guest.
    pub(crate) fn spawn(launch: Launch<'_>) -> Result<Process, SpawnError> {
        let (program, arguments) =
            launch.command.split_first().ok_or(SpawnError::Missing { program: "".into() })?;
        let at_log = |source| SpawnError::Log { path: launch.log.clone(), source };
        let output = File::create(&launch.log).map_err(at_log)?;
        let errors = output.try_clone().map_err(at_log)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(launch.dir).process_group(0);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let inherit = launch.inherit.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
        let parent = rustix::process::getpid();
        // SAFETY: the closure makes system calls and nothing else: no allocation, no lock.
        unsafe { command.pre_exec(move || prepare_child(&inherit, parent)) };
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound if launch.dir.is_dir() => {
                SpawnError::Missing { program: program.clone() }
            }
            _ => SpawnError::Spawn { program: program.clone(), source },
        };
        let mut child = command.spawn().map_err(failed)?;
        match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => {
                let pid = Pid::from_child(&child);
                Ok(Process { pid, pidfd, own: Some(Own { child, log: launch.log }), killed: false })
            }
            Err(e) => {
                // A child that cannot be watched must not stay behind; killing fails only when it is gone.
                let _gone = child.kill().and_then(|()| child.wait());
                Err(SpawnError::Spawn { program: program.clone(), source: e.into() })
            }
        }
    }

    /// A QEMU that somebody else started. It is left alone on drop.
    pub(crate) fn of_others(pid: Pid) -> io::Result<Process> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process { pid, pidfd, own: None, killed: false })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// How it ended, for a person, if it has; also after [`Process::kill`].
    pub(crate) fn ended(&mut self) -> io::Result<Option<String>> {
        match &mut self.own {
            Some(own) => Ok(own.child.try_wait()?.map(describe)),
            None => Ok(self.gone(Duration::ZERO).then(|| "ended by somebody else".to_owned())),
        }
    }

    /// Whether it was ended by [`Process::kill`].
    pub(crate) fn killed(&self) -> bool {
        self.killed
    }

    /// Waits until it has ended, at most for `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        self.gone(limit);
    }

    fn gone(&self, limit: Duration) -> bool {
        let Ok(limit) = Timespec::try_from(limit) else { return false };
        loop {
            match rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Err(Errno::INTR) => {}
                answer => return answer.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Ends it at once: on return none of its threads runs. Idempotent.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.killed = true;
        let Some(Own { child, .. }) = &mut self.own else {
            let sent = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            // Only a process that is gone already cannot be found.
            sent.or_else(|e| if e == Errno::SRCH { Ok(()) } else { Err(e) })?;
            return if self.gone(KILL_LIMIT) { Ok(()) } else { Err(Errno::TIMEDOUT.into()) };
        };
        // The command may have been a wrapper that made QEMU its own child. The group is this child's for certain
        // only until the child is collected.
        if child.try_wait()?.is_none() {
            let _already_gone = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        child.kill()?;
        child.wait().map(drop)
    }

    /// What it said last, for an error: empty when it said nothing.
    pub(crate) fn last_words(&self) -> String {
        let Some(Own { log, .. }) = &self.own else { return String::new() };
        let tail = || -> io::Result<Vec<u8>> {
            let mut log = File::open(log)?;
            let length = log.seek(SeekFrom::End(0))?;
            log.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            log.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = tail().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_own()
            && let Err(error) = self.kill()
        {
            tracing::error!(pid = %self.pid, %error, "could not end QEMU");
        }
    }
}

/// Runs in the child between fork and exec.
fn prepare_child(inherit: &[RawFd], parent: Pid) -> io::Result<()> {
    for &fd in inherit {
        // SAFETY: the parent holds these descriptors across the fork, so they are open here.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    // See `track`: no huge page may be mapped.
    rustix::thread::disable_transparent_huge_pages(true)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that ended before the line above sends no signal any more.
    if rustix::process::getppid() != Some(parent) {
        return Err(Errno::SRCH.into());
    }
    Ok(())
}

/// How a process ended, for a person.
fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => status.to_string(),
    }
}
