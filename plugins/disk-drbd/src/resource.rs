//! A DRBD resource: its state, and what the plugin has DRBD do with it.
//!
//! [`Resource`] is what the plugin needs; [`Kernel`] is DRBD's, by `/proc/drbd` and `drbdadm`. Tests of one process have
//! another on two files.

use crate::state::{self, Connection, Contents, Quarrel, Role, State};
use aventine_api::{ErrorCode, PluginError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

const PROC: &str = "/proc/drbd";

/// Why the resource cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourceError {
    #[error("drbdadm is not there. Install DRBD's tools: apt-get install drbd-utils")]
    NoTools,
    #[error("This kernel has no DRBD: /proc/drbd is not there, and `modprobe drbd` does not bring it")]
    NoModule,
    #[error("This kernel's DRBD is {0}; the plugin knows DRBD 8.4, as in Linux itself")]
    Version(String),
    #[error("`{command}` failed: {said}")]
    Command { command: String, said: String },
    #[error("`{command}` could not be run")]
    Run { command: String, source: io::Error },
    #[error("{} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "Resource {0} asks for protocol D, which only the patched DRBD of the original Remus has. It is not used here: \
        write `protocol C`"
    )]
    ProtocolD(String),
    #[error(
        "Resource {resource} goes on speaking protocol {letter}, which does not tell what the other side has. Write \
        `protocol C`: the guest does not wait for it"
    )]
    Protocol { resource: String, letter: char },
    #[error("Resource {0} has several volumes; a disk is a resource of one volume")]
    Volumes(String),
    #[error("Resource {0} is not up. Bring it up: drbdadm up {0}")]
    Down(String),
    #[error(
        "Resource {0} is StandAlone: somebody disconnected it, or DRBD gave up. Connect it: drbdadm connect {0}"
    )]
    StandAlone(String),
    #[error(
        "Resource {0} is StandAlone after a split brain: both sides were written to on their own. Choose the side whose \
        writes go, and there run: drbdadm secondary {0}; drbdadm disconnect {0}; drbdadm connect --discard-my-data {0}; on \
        the other side: drbdadm connect {0}. With `after-sb-1pri discard-secondary` DRBD settles by itself what a takeover \
        leaves"
    )]
    SplitBrain(String),
    #[error(
        "Resource {0} is StandAlone: the two sides never had the same contents. On the side whose contents go run: drbdadm \
        invalidate {0}; then on both: drbdadm connect {0}"
    )]
    Unrelated(String),
    #[error(
        "Resource {resource} is not connected ({word}). Bring it up on the other host (drbdadm up {resource}), and see that \
        DRBD's port is reachable"
    )]
    NotConnected { resource: String, word: String },
    #[error(
        "The disk of resource {0} is inconsistent: a copy from the other side has not been completed. Connect it and let DRBD \
        finish; or, where no side has any contents yet: drbdadm new-current-uuid --clear-bitmap {0}/0"
    )]
    Inconsistent(String),
    #[error(
        "The disk of resource {0} may be older than the other side's. Connect it and let DRBD resync; if the other side is \
        lost for good: drbdadm primary --force {0}, then drbdadm secondary {0}"
    )]
    Outdated(String),
    #[error(
        "Resource {0} has no disk here: it was detached or has failed. Replace it and run: drbdadm attach {0}"
    )]
    Diskless(String),
    #[error(
        "Resource {0} has no disk on the other host: it was detached or has failed. Replace it and run there: drbdadm \
        attach {0}"
    )]
    PeerDiskless(String),
    #[error("Resource {0} is Primary here, on a standby. See who uses it; then run: drbdadm secondary {0}")]
    PrimaryHere(String),
    #[error(
        "Resource {0} is Primary on the other host: the guest may run there. End that first, or start this host as the \
        standby"
    )]
    PrimaryThere(String),
}

impl From<ResourceError> for PluginError {
    fn from(error: ResourceError) -> PluginError {
        let code = match &error {
            ResourceError::Command { .. } | ResourceError::Run { .. } | ResourceError::Read { .. } => {
                ErrorCode::Io
            }
            ResourceError::ProtocolD(_) | ResourceError::Protocol { .. } | ResourceError::Volumes(_) => {
                ErrorCode::Config
            }
            ResourceError::PrimaryHere(_) | ResourceError::PrimaryThere(_) => ErrorCode::Refused,
            _ => ErrorCode::Unavailable,
        };
        PluginError::new(code, error)
    }
}

/// What the plugin needs of a resource.
pub(crate) trait Resource: Send + Sync {
    /// Its name in DRBD's configuration.
    fn name(&self) -> &str;
    /// Its block device.
    fn device(&self) -> &Path;
    /// Bytes of the device, also while that cannot be opened.
    fn size(&self) -> Option<u64>;
    /// How it stands. Blocks for as long as the kernel takes to say so.
    fn state(&self) -> Result<State, ResourceError>;
    /// Makes this side Primary; with `force` also from a disk that DRBD does not trust. Idempotent.
    fn promote(&self, force: bool) -> Result<(), ResourceError>;
    /// Makes this side Secondary. Idempotent; refused while somebody has the device open.
    fn demote(&self) -> Result<(), ResourceError>;
    /// Has both sides speak protocol `letter` from the next write on.
    fn speak(&self, letter: char) -> Result<(), ResourceError>;
    /// Ends the connection at once, also to a side that does not answer.
    fn disconnect(&self) -> Result<(), ResourceError>;
    /// Has DRBD look for the other side.
    fn connect(&self) -> Result<(), ResourceError>;
    /// Why a connection was given up, where DRBD says so.
    fn quarrel(&self) -> Option<Quarrel>;
}

/// Whether this side can run the guest.
pub(crate) fn check_primary(resource: &dyn Resource, state: &State) -> Result<(), ResourceError> {
    let name = || resource.name().to_owned();
    match (state.peer, state.contents) {
        (Role::Primary, _) => Err(ResourceError::PrimaryThere(name())),
        (_, Contents::UpToDate) => Ok(()),
        (_, Contents::Inconsistent) => Err(ResourceError::Inconsistent(name())),
        (_, Contents::Outdated | Contents::Unknown) => Err(ResourceError::Outdated(name())),
        (_, Contents::None) => Err(ResourceError::Diskless(name())),
    }
}

/// Whether this side can follow a primary, perhaps after a resync.
pub(crate) fn check_standby(resource: &dyn Resource, state: &State) -> Result<(), ResourceError> {
    match (state.role, state.contents) {
        (Role::Primary, _) => Err(ResourceError::PrimaryHere(resource.name().to_owned())),
        (_, Contents::None) => Err(ResourceError::Diskless(resource.name().to_owned())),
        _ => check_connection(resource, state),
    }
}

/// Whether DRBD has a connection, or will have one by itself.
pub(crate) fn check_connection(resource: &dyn Resource, state: &State) -> Result<(), ResourceError> {
    if state.connection != Connection::StandAlone {
        return Ok(());
    }
    let name = resource.name().to_owned();
    Err(match resource.quarrel() {
        Some(Quarrel::SplitBrain) => ResourceError::SplitBrain(name),
        Some(Quarrel::Unrelated) => ResourceError::Unrelated(name),
        None => ResourceError::StandAlone(name),
    })
}

/// A resource of this kernel's.
pub(crate) struct Kernel {
    name: String,
    device: PathBuf,
    minor: u32,
}

impl Kernel {
    /// Finds the resource in DRBD's configuration; has the kernel load its module.
    pub(crate) fn find(name: &str) -> Result<Kernel, ResourceError> {
        if program("drbdadm").is_none() {
            return Err(ResourceError::NoTools);
        }
        if !Path::new(PROC).exists() {
            let modprobe = program("modprobe").unwrap_or_else(|| "modprobe".into());
            let loaded = Command::new(modprobe).args(["-q", "drbd"]).status();
            if !loaded.is_ok_and(|status| status.success()) || !Path::new(PROC).exists() {
                return Err(ResourceError::NoModule);
            }
        }
        let text = read()?;
        let version = state::version(&text).unwrap_or("of an unknown version");
        if !version.starts_with("8.4.") {
            return Err(ResourceError::Version(version.to_owned()));
        }
        let device = drbdadm(name, &["sh-dev"])?;
        let minor = drbdadm(name, &["sh-minor"])?;
        match (device.lines().count(), minor.trim().parse()) {
            (1, Ok(minor)) => Ok(Kernel { name: name.to_owned(), device: device.trim().into(), minor }),
            _ => Err(ResourceError::Volumes(name.to_owned())),
        }
    }
}

impl Resource for Kernel {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> &Path {
        &self.device
    }

    fn size(&self) -> Option<u64> {
        let sectors = fs::read_to_string(format!("/sys/class/block/drbd{}/size", self.minor)).ok()?;
        sectors.trim().parse::<u64>().ok()?.checked_mul(512)
    }

    fn state(&self) -> Result<State, ResourceError> {
        let state =
            state::parse(&read()?, self.minor).ok_or_else(|| ResourceError::Down(self.name.clone()))?;
        if state.protocol == 'D' {
            return Err(ResourceError::ProtocolD(self.name.clone()));
        }
        Ok(state)
    }

    fn promote(&self, force: bool) -> Result<(), ResourceError> {
        let words: &[&str] = if force { &["primary", "--force"] } else { &["primary"] };
        drbdadm(&self.name, words).map(drop)
    }

    fn demote(&self) -> Result<(), ResourceError> {
        drbdadm(&self.name, &["secondary"]).map(drop)
    }

    fn speak(&self, letter: char) -> Result<(), ResourceError> {
        drbdadm(&self.name, &["net-options", &format!("--protocol={letter}")]).map(drop)
    }

    fn disconnect(&self) -> Result<(), ResourceError> {
        drbdadm(&self.name, &["disconnect", "--force"]).map(drop)
    }

    fn connect(&self) -> Result<(), ResourceError> {
        drbdadm(&self.name, &["connect"]).map(drop)
    }

    fn quarrel(&self) -> Option<Quarrel> {
        state::quarrel(&kernel_log().unwrap_or_default(), self.minor)
    }
}

fn read() -> Result<String, ResourceError> {
    fs::read_to_string(PROC).map_err(|source| ResourceError::Read { path: PROC.into(), source })
}

/// Runs `drbdadm WORDS NAME`; answers what it prints.
fn drbdadm(name: &str, words: &[&str]) -> Result<String, ResourceError> {
    let command = format!("drbdadm {} {name}", words.join(" "));
    let mut drbdadm = Command::new(program("drbdadm").ok_or(ResourceError::NoTools)?);
    match drbdadm.args(words).arg(name).output() {
        Ok(Output { status, stdout, .. }) if status.success() => {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        }
        Ok(Output { stderr, .. }) => {
            let said = String::from_utf8_lossy(&stderr).split_whitespace().collect::<Vec<_>>().join(" ");
            if said.contains("for protocol") && said.contains("'D'") {
                return Err(ResourceError::ProtocolD(name.to_owned()));
            }
            Err(ResourceError::Command { command, said })
        }
        Err(source) => Err(ResourceError::Run { command, source }),
    }
}

/// DRBD's tools are where not every user's PATH leads.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|path| path.is_file())
}

/// All of the kernel's log, as far as it is kept.
fn kernel_log() -> Result<String, Errno> {
    let log =
        rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let (mut text, mut record) = (Vec::new(), [0; 8192]);
    loop {
        match rustix::io::read(&log, &mut record) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(length) => text.extend(&record[..length]),
            // Overwritten while it was read.
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
