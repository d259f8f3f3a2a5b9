//! One QEMU process with its memory, its control connection and its dirty pages.

use crate::attach::{self, Attached};
use crate::error::{ActivateError, CallError, EndedError, StartError, may_be_the_end};
use crate::firmware;
use crate::inspect::inspect;
use crate::launch;
use crate::memory::GuestMemory;
use crate::options::{Attach, Options};
use crate::process::{Launch, Process};
use crate::qmp::{Command, Qmp, QmpError};
use crate::saved::Saved;
use crate::track::{Owner, TrackError, Tracker};
use crate::watchdog::Watchdog;
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
/// When a guest that was taken over is made to announce its addresses: not before its first answers, which tell switches
/// as well.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(200);
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

impl Commands {
    fn new(save_to: &str) -> Commands {
        // A state saved with `live` also makes QEMU give its disks away: a second one in the same pause would abort it.
        let to = json!({ "filename": save_to, "live": false });
        Commands {
            stop: Command::new("stop"),
            save: Command::with("xen-save-devices-state", &to),
            resume: Command::new("cont"),
        }
    }
}

pub(crate) struct Machine {
    // The first field is dropped first: QEMU ends before anything that it uses goes.
    process: Process,
    /// For a VM that outlives this: resumes it.
    _watchdog: Option<Watchdog>,
    qmp: Qmp,
    memory: GuestMemory,
    tracker: Tracker,
    phase: Phase,
    commands: Commands,
    saved: Saved,
    /// What an activation reads, of a QEMU that was started here.
    incoming: Option<File>,
    /// When the guest's addresses are due to be announced.
    announce_at: Option<Instant>,
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
        match (side, &options.attach) {
            (Side::Primary, Some(attach)) => Machine::attach(options, attach, dir, attachments, deadline),
            _ => Machine::launch(options, side, dir, state_dir, attachments, deadline),
        }
    }

    fn launch(
        options: &Options,
        side: Side,
        dir: &Path,
        state_dir: &Path,
        attachments: &Attachments,
        deadline: Instant,
    ) -> Result<Machine, StartError> {
        let memory = GuestMemory::new(options.ram, side == Side::Standby)
            .map_err(|source| StartError::Memory { bytes: options.ram, source })?;
        let saved = Saved::new().map_err(StartError::Channels)?;
        let channels = |e: rustix::io::Errno| StartError::Channels(e.into());
        let incoming =
            rustix::fs::memfd_create("aventine-incoming", MemfdFlags::CLOEXEC).map_err(channels)?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(channels)?;
        let mut process = Process::spawn(Launch {
            command: launch::command(options, side, memory.as_fd(), theirs.as_fd(), attachments)?,
            dir,
            log: state_dir.join("qemu.log"),
            inherit: vec![memory.as_fd(), theirs.as_fd(), incoming.as_fd()],
        })?;
        // Held here too, it would hide QEMU's end.
        drop(theirs);
        let made = set_up(&process, ours, side, &memory, &saved, attachments, deadline);
        let (mut qmp, tracker, save_to) = match made {
            Ok(parts) => parts,
            Err(error) if may_be_the_end(&error) => {
                return Err(end_of(&mut process).map_or(error, StartError::Ended));
            }
            Err(error) => return Err(error),
        };
        if side == Side::Standby {
            firmware::restore(process.pid(), &mut qmp, options, dir, deadline)?;
        }
        Ok(Machine {
            process,
            qmp,
            _watchdog: None,
            memory,
            tracker,
            phase: if side == Side::Standby { Phase::Waiting } else { Phase::Paused },
            commands: Commands::new(&save_to),
            saved,
            incoming: Some(incoming.into()),
            announce_at: None,
            end_told: false,
        })
    }

    /// The VM that runs already goes on running.
    fn attach(
        options: &Options,
        attach: &Attach,
        dir: &Path,
        attachments: &Attachments,
        deadline: Instant,
    ) -> Result<Machine, StartError> {
        let Attached { process, mut qmp, watchdog, memory, ram } =
            attach::attach(options, attach, dir, attachments, deadline)?;
        inspect(&mut qmp, &ram, attachments, deadline)?;
        let tracker = Tracker::start(process.pid(), Owner::Others, memory.as_fd(), memory.bytes())?;
        let saved = Saved::new().map_err(StartError::Channels)?;
        let save_to = saved.lend(&mut qmp, deadline).map_err(StartError::Lend)?;
        Ok(Machine {
            process,
            phase: if qmp.seen.running { Phase::Running } else { Phase::Paused },
            qmp,
            _watchdog: Some(watchdog),
            memory,
            tracker,
            commands: Commands::new(&save_to),
            saved,
            incoming: None,
            announce_at: None,
            end_told: false,
        })
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
                self.saved.rewind().map_err(CallError::State)?;
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
        self.saved.read(state).map_err(CallError::State)
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
        let runs = self.phase == Phase::Running;
        if runs && self.tracker.needs_pause() {
            self.pause()?;
        }
        let scanned = match self.tracker.scan(dirty) {
            Err(TrackError::Gone) => Err(self.ended_or(CallError::Track(TrackError::Gone))),
            scanned => scanned.map_err(CallError::Track),
        };
        let resumed = if runs { self.resume() } else { Ok(()) };
        scanned.and(resumed)
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

    pub(crate) fn outlives(&self) -> bool {
        !self.process.is_own()
    }

    pub(crate) fn kill(&mut self) -> Result<(), CallError> {
        self.process.kill().map_err(CallError::Process)
    }

    pub(crate) fn activate(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let incoming = self.incoming.take().filter(|_| self.phase == Phase::Waiting);
        let incoming = incoming.ok_or(ActivateError::NotWaiting)?;
        let loaded = self.load(&incoming, state);
        match &loaded {
            Ok(()) => self.phase = Phase::Running,
            // A guest that runs after all, later, must not.
            Err(_) => self.process.kill().map_err(ActivateError::State)?,
        }
        loaded
    }

    fn load(&mut self, incoming: &File, state: &[u8]) -> Result<(), ActivateError> {
        let deadline = Instant::now() + ACTIVATE_LIMIT;
        incoming.write_all_at(state, 0).map_err(ActivateError::State)?;
        let uri = format!("fd:{}", incoming.as_raw_fd());
        // The first of its own announcements would come before the guest's first answers.
        let quiet = Command::with("migrate-set-parameters", &json!({ "announce-rounds": 0 }));
        let command = Command::with("migrate-incoming", &json!({ "uri": uri }));
        let started = self
            .qmp
            .execute(&quiet, Some(deadline))
            .and_then(|_| self.qmp.execute(&command, Some(deadline)))
            .and_then(|_| self.qmp.until_running(deadline));
        self.announce_at = Some(Instant::now() + ANNOUNCE_AFTER);
        started.map_err(|error| match error {
            QmpError::Closed => {
                end_of(&mut self.process).map_or(ActivateError::Qmp(error), ActivateError::Ended)
            }
            error => ActivateError::Qmp(error),
        })
    }

    fn announce_when_due(&mut self) {
        if self.phase == Phase::Saving || self.announce_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.announce_at = None;
        let rounds = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 });
        // A guest that is not announced is found when it speaks. QEMU's end shows at the next look.
        if let Err(error) = self.qmp.execute(&Command::with("announce-self", &rounds), None) {
            tracing::warn!(%error, "the guest's addresses could not be announced");
        }
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
        if ended.is_none() {
            self.announce_when_due();
        }
        if std::mem::take(&mut self.qmp.seen.panicked) {
            return Ok(Some(GuestEvent::Panicked));
        }
        if std::mem::take(&mut self.qmp.seen.rebooted) {
            return Ok(Some(GuestEvent::Rebooted));
        }
        // A VM that somebody else started may stay, shut down, for its owner to look at.
        let over = !self.process.is_own() && self.qmp.seen.shutdown.as_ref().is_some_and(|s| s.guest);
        let how = match ended {
            Some(how) => how,
            None if over => String::new(),
            None => return Ok(None),
        };
        self.end_told = true;
        Ok(Some(match &self.qmp.seen.shutdown {
            Some(shutdown) if shutdown.guest => GuestEvent::ShutDown,
            // Somebody on the host ended QEMU: the guest did not ask for it, and the other host can go on with it.
            Some(shutdown) => {
                GuestEvent::Lost { how: format!("QEMU was ended on this host ({})", shutdown.reason) }
            }
            None => GuestEvent::Lost { how: format!("QEMU was {how}") },
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
    saved: &Saved,
    attachments: &Attachments,
    deadline: Instant,
) -> Result<(Qmp, Tracker, String), StartError> {
    let mut qmp = Qmp::connect(socket, deadline)
        .map_err(|source| StartError::Handshake { log: process.last_words(), source })?;
    inspect(&mut qmp, launch::RAM, attachments, deadline)?;
    let save_to = saved.lend(&mut qmp, deadline).map_err(StartError::Lend)?;
    if side == Side::Standby {
        // Whatever QEMU may have put there: the image starts empty.
        memory.clear().map_err(|source| StartError::Memory { bytes: memory.bytes(), source })?;
    }
    let tracker = Tracker::start(process.pid(), Owner::Us, memory.as_fd(), memory.bytes())?;
    Ok((qmp, tracker, save_to))
}

/// How QEMU ended, once it has closed its control connection; `None` if it did not end after all.
fn end_of(process: &mut Process) -> Option<EndedError> {
    process.wait(EXIT_LIMIT);
    let how = process.ended().ok().flatten()?;
    Some(EndedError { how, log: process.last_words() })
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
