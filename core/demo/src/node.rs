//! One `aventine protect` or `aventine standby` process on one of the hosts.

use crate::network::Namespace;
use aventine_engine::{Quantiles, Status};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two looks at a status.
const POLL: Duration = Duration::from_millis(5);
/// Longest that an answer on the admin socket may take.
const ANSWER: Duration = Duration::from_secs(60);
/// Lines of a log shown with an error.
const TAIL: usize = 15;

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It could not be started.
    #[error("Cannot start {program}")]
    Start {
        /// What was started.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended by itself.
    #[error("{node} ended ({status}) while waiting for {event}; its log ends with:\n{log}")]
    Ended {
        /// Which one.
        node: String,
        /// How.
        status: ExitStatus,
        /// What was waited for.
        event: String,
        /// The last lines of its log.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{node}: {event} did not happen within {limit:?} (state {state:?}); its log ends with:\n{log}")]
    Late {
        /// Which one.
        node: String,
        /// What was waited for.
        event: String,
        /// For how long.
        limit: Duration,
        /// The last state it told.
        state: String,
        /// The last lines of its log.
        log: String,
    },
    /// The admin socket did not answer.
    #[error("{node} does not answer on its admin socket")]
    Silent {
        /// Which one.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// The admin socket answered with an error or with something else.
    #[error("{node} refused: {answer}")]
    Refused {
        /// Which one.
        node: String,
        /// The answer.
        answer: String,
    },
    /// It could not be signalled or waited for.
    #[error("Cannot signal {node}")]
    Signal {
        /// Which one.
        node: String,
        /// Why.
        source: io::Error,
    },
}

/// What a process is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `aventine protect`
    Protect,
    /// `aventine standby`
    Standby,
}

/// `program` with `arguments` in `namespace` and `dir`. The process dies with the calling thread.
pub(crate) fn command(program: &Path, namespace: &Namespace, dir: &Path, arguments: &[&str]) -> Command {
    let mut network = OsString::from("--net=");
    network.push(namespace.path());
    let mut command = Command::new("nsenter");
    command.arg(network).args(["--", "setpriv", "--pdeathsig", "KILL", "--"]);
    command.arg(program).args(arguments).current_dir(dir).stdin(Stdio::null());
    command
}

/// A running process. Dropping it ends it and its guest.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    child: Child,
}

impl Node {
    /// Starts `program` in `namespace` on the configuration `dir/demo.toml`, with state in `dir/state` and its log in
    /// `dir/aventine.log`. The process dies with the calling thread.
    pub fn start(program: &Path, namespace: &Namespace, dir: &Path, role: Role) -> Result<Node, NodeError> {
        let verb = match role {
            Role::Protect => "protect",
            Role::Standby => "standby",
        };
        // One that is started again says what happened after what happened before.
        let failed = |source| NodeError::Start { program: program.to_owned(), source };
        let log = File::options().create(true).append(true).open(dir.join("aventine.log")).map_err(failed)?;
        let child = command(program, namespace, dir, &[verb, "demo.toml", "--state-dir", "state"])
            .stderr(log.try_clone().map_err(failed)?)
            .stdout(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Node { name, dir: dir.to_owned(), child })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its host's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// All that it has printed.
    pub fn printed(&self) -> String {
        let text = fs::read(self.dir.join("aventine.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines of that.
    pub fn log(&self) -> String {
        let text = self.printed();
        let lines = text.lines().collect::<Vec<_>>();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Asks on the admin socket.
    pub fn request<T: DeserializeOwned>(&self, request: &Value) -> Result<T, NodeError> {
        let silent = |source| NodeError::Silent { node: self.name.clone(), source };
        let line = self.exchange(request).map_err(silent)?;
        let refused = || NodeError::Refused { node: self.name.clone(), answer: line.trim().to_owned() };
        let mut answer = serde_json::from_str::<Value>(&line).map_err(|_| refused())?;
        let ok = answer.get_mut("ok").map(Value::take).ok_or_else(refused)?;
        serde_json::from_value(ok).map_err(|_| refused())
    }

    fn exchange(&self, request: &Value) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.state_dir().join("admin.sock"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    }

    /// Its status.
    pub fn status(&self) -> Result<Status, NodeError> {
        self.request(&json!({ "request": "status" }))
    }

    /// Primary: times the guest's own pause, save and resume `rounds` times.
    pub fn floor(&self, rounds: u32) -> Result<Quantiles, NodeError> {
        self.request(&json!({ "request": "floor", "rounds": rounds }))
    }

    /// Ends protection; the guest runs on.
    pub fn stop(&self) -> Result<(), NodeError> {
        self.request::<Value>(&json!({ "request": "stop" })).map(drop)
    }

    /// Hands its guest over to the other host; returns once it runs there.
    pub fn hand_over(&self) -> Result<(), NodeError> {
        self.request::<Value>(&json!({ "request": "handover" })).map(drop)
    }

    /// Waits until the status satisfies `reached`. `event` says what that is, for a person.
    pub fn wait_for(
        &mut self,
        event: &str,
        limit: Duration,
        reached: impl Fn(&Status) -> bool,
    ) -> Result<Status, NodeError> {
        let end = Instant::now() + limit;
        let mut state = String::new();
        loop {
            // No answer yet, or a broken one while it ends, is looked at again.
            match self.status() {
                Ok(status) if reached(&status) => return Ok(status),
                Ok(status) => state = format!("{} {}", status.state, status.detail).trim().to_owned(),
                Err(NodeError::Refused { node, answer }) => return Err(NodeError::Refused { node, answer }),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait().map_err(|source| self.signal_error(source))? {
                let (node, event, log) = (self.name.clone(), event.into(), self.log());
                return Err(NodeError::Ended { node, status, event, log });
            }
            if Instant::now() >= end {
                let (node, event, log) = (self.name.clone(), event.into(), self.log());
                return Err(NodeError::Late { node, event, limit, state, log });
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until the process has ended.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus, NodeError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|source| self.signal_error(source))? {
                return Ok(status);
            }
            if Instant::now() >= end {
                let event = "its end".into();
                let (node, state, log) = (self.name.clone(), String::new(), self.log());
                return Err(NodeError::Late { node, event, limit, state, log });
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until the process has ended, however long that takes.
    pub fn wait(&mut self) -> Result<ExitStatus, NodeError> {
        self.child.wait().map_err(|source| self.signal_error(source))
    }

    /// Sends it a signal, as Ctrl-C does with `Signal::INT`.
    pub fn signal(&self, signal: Signal) -> Result<(), NodeError> {
        kill_process(Pid::from_child(&self.child), signal).map_err(|e| self.signal_error(e.into()))
    }

    /// Ends the process and its guest's at the same moment with SIGKILL, as the loss of the host does.
    pub fn kill(&mut self, guest_first: bool) -> Result<(), NodeError> {
        let (guest, own) = (self.guest()?, Pid::from_child(&self.child));
        for pid in if guest_first { [guest, own] } else { [own, guest] } {
            self.kill_process(pid)?;
        }
        self.child.wait().map(drop).map_err(|source| self.signal_error(source))
    }

    /// Ends the process alone with SIGKILL.
    pub fn kill_controller(&mut self) -> Result<(), NodeError> {
        self.kill_process(Pid::from_child(&self.child))?;
        self.wait().map(drop)
    }

    /// Ends its guest's process alone with SIGKILL.
    pub fn kill_guest(&self) -> Result<(), NodeError> {
        self.kill_process(self.guest()?)
    }

    /// Its guest's process.
    fn guest(&self) -> Result<Pid, NodeError> {
        let guest = self.status()?.guest_pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        guest.ok_or_else(|| self.signal_error(io::Error::other("it has no guest process")))
    }

    /// The guest may have died with its controller already.
    fn kill_process(&self, pid: Pid) -> Result<(), NodeError> {
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(self.signal_error(error.into())),
        }
    }

    fn signal_error(&self, source: io::Error) -> NodeError {
        NodeError::Signal { node: self.name.clone(), source }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Without a status there is no guest, or one that dies with its controller.
            if self.kill(false).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
