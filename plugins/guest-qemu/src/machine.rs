//! One QEMU process with its memory, its control connection and its dirty pages.

use crate::error::{ActivateError, CallError, EndedError, StartError, may_be_the_end};
use crate::inspect::inspect;
use crate::launch;
use crate::memory::GuestMemory;
use crate::options::Options;
use crate::process::{Launch, Process, describe};
use crate::qmp::{Command, Qmp, QmpError};
use crate::track::{TrackError, Tracker};
use aventine_api::{Attachments, GuestEvent, PageBitmap, Side};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long QEMU may take to make the machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to read a device state and run.
const ACTIVATE_LIMIT: Duration = Duration::from_secs(60);
/// How long its process may take to vanish once it has closed its control connection.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Standby: not activated.
    Waiting,
    Paused,
    /// Paused, and a device state is being saved.
    Saving,
    Running,
}

/// The commands of an epoch, ready to be sent.
struct Commands {
    stop: Command,
    save: Command,
    resume: Command,
}

pub(crate) struct Machine {
    // The first field is dropped first: QEMU ends before anything that it uses goes.
    process: Process,
    qmp: Qmp,
    memory: GuestMemory,
    tracker: Tracker,
    phase: Phase,
    commands: Commands,
    /// QEMU opens it anew for each save, which truncates it.
    saved: File,
    /// What an activation reads.
    incoming: File,
    end_told: bool,
}

impl Machine {
    pub(crate) fn start(
        options: &Options,
        side: Side,
        dir: &Path,
        state_dir: &Path,
        attachments: &Attachments,
    ) -> Result<Machine, StartError> {
        let deadline = Instant::now() + START_LIMIT;
        let memory = GuestMemory::new(options.ram, side == Side::Standby)
            .map_err(|source| StartError::Memory { bytes: options.ram, source })?;
        let file = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let channels = |e: rustix::io::Errno| StartError::Channels(e.into());
        let saved = file("aventine-state").map_err(channels)?;
        let incoming = file("aventine-incoming").map_err(channels)?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(channels)?;
        let mut process = Process::spawn(Launch {
            command: launch::command(options, side, memory.as_fd(), theirs.as_fd(), attachments)?,
            dir,
            log: state_dir.join("qemu.log"),
            inherit: vec![memory.as_fd(), theirs.as_fd(), saved.as_fd(), incoming.as_fd()],
        })?;
        // Held here too, it would hide QEMU's end.
        drop(theirs);
        let made = set_up(&process, ours, side, &memory, attachments, deadline);
        let (qmp, tracker) = match made {
            Ok(parts) => parts,
            Err(error) if may_be_the_end(&error) => {
                return Err(end_of(&mut process).map_or(error, StartError::Ended));
            }
            Err(error) => return Err(error),
        };
        let phase = if side == Side::Standby { Phase::Waiting } else { Phase::Paused };
        let path = format!("/proc/self/fd/{}", saved.as_raw_fd());
        // A state saved with `live` also makes QEMU give its disks away: a second one in the same pause would abort it.
        let commands = Commands {
            stop: Command::new("stop"),
            save: Command::with("xen-save-devices-state", &json!({ "filename": path, "live": false })),
            resume: Command::new("cont"),
        };
        Ok(Machine { process, qmp, memory, tracker, phase, commands, saved, incoming, end_told: false })
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid().as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn pause(&mut self) -> Result<(), CallError> {
        match self.phase {
            Phase::Waiting => Err(CallError::NotActive),
            Phase::Paused | Phase::Saving => Ok(()),
            Phase::Running => {
                let answer = self.qmp.execute(&self.commands.stop, None);
                self.checked(answer)?;
                self.phase = Phase::Paused;
                Ok(())
            }
        }
    }

    pub(crate) fn resume(&mut self) -> Result<(), CallError> {
        match self.phase {
            Phase::Waiting => return Err(CallError::NotActive),
            Phase::Running => return Ok(()),
            // Nobody wants this state any more, but its answer comes first.
            Phase::Saving => self.finish_save()?,
            Phase::Paused => {}
        }
        let answer = self.qmp.execute(&self.commands.resume, None);
        self.checked(answer)?;
        self.phase = Phase::Running;
        Ok(())
    }

    pub(crate) fn start_state(&mut self) -> Result<(), CallError> {
        match self.phase {
            Phase::Waiting => Err(CallError::NotActive),
            Phase::Running => Err(CallError::NotPaused),
            Phase::Saving => Ok(()),
            Phase::Paused => {
                let sent = self.qmp.send(&self.commands.save);
                self.checked(sent)?;
                self.phase = Phase::Saving;
                Ok(())
            }
        }
    }

    pub(crate) fn finish_state(&mut self, state: &mut Vec<u8>) -> Result<(), CallError> {
        if self.phase != Phase::Saving {
            return Err(CallError::NoState);
        }
        self.finish_save()?;
        if self.qmp.seen.running {
            return Err(CallError::ResumedByOthers);
        }
        let length = self.saved.metadata().map_err(CallError::State)?.len();
        state.resize(length as usize, 0);
        self.saved.read_exact_at(state, 0).map_err(CallError::State)
    }

    fn finish_save(&mut self) -> Result<(), CallError> {
        let answer = self.qmp.answer(&self.commands.save, None);
        self.phase = Phase::Paused;
        self.checked(answer).map(drop)
    }

    pub(crate) fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), CallError> {
        if self.phase == Phase::Waiting {
            return Err(CallError::NotActive);
        }
        match self.tracker.scan(dirty) {
            Err(TrackError::Gone) => Err(self.ended_or(CallError::Track(TrackError::Gone))),
            scanned => scanned.map_err(CallError::Track),
        }
    }

    pub(crate) fn populated(&mut self, pages: &mut PageBitmap) -> Result<(), CallError> {
        if self.phase == Phase::Waiting {
            return Err(CallError::NotActive);
        }
        self.memory.populated(pages).map_err(CallError::Populated)
    }

    pub(crate) fn power_down(&mut self) -> Result<(), CallError> {
        if self.phase == Phase::Waiting {
            return Err(CallError::NotActive);
        }
        let answer = self.qmp.execute(&Command::new("system_powerdown"), None);
        self.checked(answer).map(drop)
    }

    pub(crate) fn kill(&mut self) -> Result<(), CallError> {
        self.process.kill().map_err(CallError::Process)
    }

    pub(crate) fn activate(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        if self.phase != Phase::Waiting {
            return Err(ActivateError::NotWaiting);
        }
        let loaded = self.load(state);
        match &loaded {
            Ok(()) => self.phase = Phase::Running,
            // A guest that runs after all, later, must not.
            Err(_) => self.process.kill().map_err(ActivateError::State)?,
        }
        loaded
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let deadline = Instant::now() + ACTIVATE_LIMIT;
        self.incoming.write_all_at(state, 0).map_err(ActivateError::State)?;
        let uri = format!("fd:{}", self.incoming.as_raw_fd());
        let command = Command::with("migrate-incoming", &json!({ "uri": uri }));
        let started =
            self.qmp.execute(&command, Some(deadline)).and_then(|_| self.qmp.until_running(deadline));
        started.map_err(|error| match error {
            QmpError::Closed => {
                end_of(&mut self.process).map_or(ActivateError::Qmp(error), ActivateError::Ended)
            }
            error => ActivateError::Qmp(error),
        })
    }

    pub(crate) fn poll(&mut self) -> Result<Option<GuestEvent>, CallError> {
        if self.end_told || self.process.killed() {
            return Ok(None);
        }
        // Asked before the events are read, so that a process that has ended has also said everything.
        let ended = self.process.ended().map_err(CallError::Process)?;
        let drained = if self.phase == Phase::Saving { Ok(()) } else { self.qmp.drain() };
        if ended.is_none() {
            drained.map_err(CallError::Qmp)?;
        }
        if std::mem::take(&mut self.qmp.seen.panicked) {
            return Ok(Some(GuestEvent::Panicked));
        }
        if std::mem::take(&mut self.qmp.seen.rebooted) {
            return Ok(Some(GuestEvent::Rebooted));
        }
        let Some(status) = ended else { return Ok(None) };
        self.end_told = true;
        Ok(Some(match &self.qmp.seen.shutdown {
            Some(shutdown) if shutdown.guest => GuestEvent::ShutDown,
            // Somebody on the host ended QEMU: the guest did not ask for it, and the other host can go on with it.
            Some(shutdown) => {
                GuestEvent::Lost { how: format!("QEMU was ended on this host ({})", shutdown.reason) }
            }
            None => GuestEvent::Lost { how: format!("QEMU was {}", describe(status)) },
        }))
    }

    fn checked<T>(&mut self, answer: Result<T, QmpError>) -> Result<T, CallError> {
        answer.map_err(|error| match error {
            QmpError::Closed => self.ended_or(CallError::Qmp(QmpError::Closed)),
            error => CallError::Qmp(error),
        })
    }

    fn ended_or(&mut self, otherwise: CallError) -> CallError {
        end_of(&mut self.process).map_or(otherwise, CallError::Ended)
    }
}

/// What is done between QEMU's birth and a machine that is ready.
fn set_up(
    process: &Process,
    socket: std::os::fd::OwnedFd,
    side: Side,
    memory: &GuestMemory,
    attachments: &Attachments,
    deadline: Instant,
) -> Result<(Qmp, Tracker), StartError> {
    let mut qmp = Qmp::connect(socket, deadline)
        .map_err(|source| StartError::Handshake { log: process.last_words(), source })?;
    inspect(&mut qmp, attachments, deadline)?;
    if side == Side::Standby {
        // Whatever QEMU may have put there: the image starts empty.
        memory.clear().map_err(|source| StartError::Memory { bytes: memory.bytes(), source })?;
    }
    let tracker = Tracker::of_child(process.pid(), memory.as_fd(), memory.bytes())?;
    Ok((qmp, tracker))
}

/// How QEMU ended, once it has closed its control connection; `None` if it did not end after all.
fn end_of(process: &mut Process) -> Option<EndedError> {
    process.wait(EXIT_LIMIT);
    let status = process.ended().ok().flatten()?;
    Some(EndedError { how: describe(status), log: process.last_words() })
}

/// The first line of `program --version`, run in `dir`.
pub(crate) fn version(program: &str, dir: &Path) -> Result<String, crate::error::SignatureError> {
    use crate::error::SignatureError as E;
    let program = program.to_owned();
    let mut command = std::process::Command::new(&program);
    let output = match command.arg("--version").current_dir(dir).stdin(std::process::Stdio::null()).output() {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.is_dir() => return Err(E::Missing { program }),
        Err(source) => return Err(E::Run { program, source }),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(E::Failed { program, output: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
    }
}
