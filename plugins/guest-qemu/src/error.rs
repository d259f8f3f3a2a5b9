//! What can go wrong, one type for each operation, and what the engine is to make of it.

use crate::attach::AttachError;
use crate::firmware::FirmwareError;
use crate::inject::InjectError;
use crate::inspect::InspectError;
use crate::launch::PathError;
use crate::process::SpawnError;
use crate::qmp::QmpError;
use crate::track::TrackError;
use aventine_api::{ErrorCode, PluginError};
use std::io;

/// QEMU has ended.
#[derive(Debug, thiserror::Error)]
#[error("QEMU was {how}{}", quoted(log))]
pub(crate) struct EndedError {
    /// How, for a person.
    pub(crate) how: String,
    /// The last lines it wrote.
    pub(crate) log: String,
}

fn quoted(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its last words: {log}") }
}

/// Why what must agree on both hosts could not be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignatureError {
    #[error("The program {program} is not there; on Debian: apt install qemu-system-x86")]
    Missing { program: String },
    #[error("Could not ask {program} for its version")]
    Run { program: String, source: io::Error },
    #[error("{program} --version failed: {output}")]
    Failed { program: String, output: String },
}

impl From<SignatureError> for PluginError {
    fn from(error: SignatureError) -> PluginError {
        PluginError::new(ErrorCode::Unavailable, error)
    }
}

/// Why the guest could not be brought into being.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("The guest was started before")]
    Again,
    #[error("Could not make {bytes} bytes of guest memory")]
    Memory { bytes: u64, source: io::Error },
    #[error("Could not make the channels to QEMU")]
    Channels(#[source] io::Error),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("QEMU did not start")]
    Ended(#[source] EndedError),
    #[error("QEMU did not become ready{}", quoted(log))]
    Handshake { log: String, source: QmpError },
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("Could not hand QEMU the file for its device state")]
    Lend(#[source] QmpError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    #[error(transparent)]
    Track(#[from] TrackError),
}

impl From<StartError> for PluginError {
    fn from(error: StartError) -> PluginError {
        let code = match &error {
            StartError::Again => ErrorCode::Internal,
            StartError::Memory { .. } | StartError::Channels(_) => ErrorCode::Io,
            StartError::Path(_) | StartError::Ended(_) => ErrorCode::Config,
            StartError::Spawn(_) => ErrorCode::Unavailable,
            StartError::Handshake { source, .. } | StartError::Inspect(InspectError::Qmp(source)) => {
                qmp_code(source)
            }
            StartError::Lend(source)
            | StartError::Attach(AttachError::Qmp(source))
            | StartError::Firmware(FirmwareError::Qmp(source)) => qmp_code(source),
            StartError::Firmware(FirmwareError::Form { .. }) => ErrorCode::Corrupt,
            StartError::Firmware(FirmwareError::Write(_)) => ErrorCode::Io,
            StartError::Firmware(_) => ErrorCode::Unavailable,
            StartError::Attach(AttachError::Form { .. }) | StartError::Inspect(InspectError::Form { .. }) => {
                ErrorCode::Corrupt
            }
            StartError::Attach(
                AttachError::Connect { .. } | AttachError::Greeting { .. } | AttachError::Process { .. },
            ) => ErrorCode::Unavailable,
            StartError::Attach(AttachError::Memory { .. } | AttachError::Watchdog(_)) => ErrorCode::Io,
            StartError::Attach(AttachError::NotThere { .. }) => ErrorCode::Config,
            StartError::Attach(AttachError::Lacking(_)) | StartError::Inspect(_) => ErrorCode::Refused,
            StartError::Track(TrackError::Layout { .. }) => ErrorCode::Config,
            StartError::Track(_) => ErrorCode::Unavailable,
        };
        PluginError::new(code, error)
    }
}

/// Why a call on a guest that was started failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("The guest was not started")]
    NotStarted,
    #[error("The guest waits to be activated")]
    NotActive,
    #[error("The guest is not paused")]
    NotPaused,
    #[error("No device state was begun")]
    NoState,
    #[error(transparent)]
    Ended(#[from] EndedError),
    #[error(transparent)]
    Qmp(QmpError),
    #[error("Something else resumed the guest while it was paused; leave stop and cont to Aventine")]
    ResumedByOthers,
    #[error("Could not read the device state")]
    State(#[source] io::Error),
    #[error("Could not find the touched pages of guest memory")]
    Populated(#[source] io::Error),
    #[error(transparent)]
    Track(TrackError),
    #[error("Could not end QEMU or learn how it ended")]
    Process(#[source] io::Error),
}

impl From<CallError> for PluginError {
    fn from(error: CallError) -> PluginError {
        let code = match &error {
            CallError::NotStarted | CallError::NotActive | CallError::NotPaused | CallError::NoState => {
                ErrorCode::Internal
            }
            CallError::ResumedByOthers => ErrorCode::Refused,
            CallError::Ended(_) | CallError::Track(TrackError::Gone) => ErrorCode::PeerLost,
            CallError::Qmp(source) => qmp_code(source),
            CallError::State(_) | CallError::Populated(_) | CallError::Track(_) | CallError::Process(_) => {
                ErrorCode::Io
            }
        };
        PluginError::new(code, error)
    }
}

/// Why a checkpoint could not be brought to life.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    #[error("Only a standby's guest that was not activated before can be activated")]
    NotWaiting,
    #[error("Could not hand the device state to QEMU")]
    State(#[source] io::Error),
    #[error("QEMU did not accept the device state")]
    Ended(#[source] EndedError),
    #[error("QEMU did not accept the device state")]
    Qmp(#[source] QmpError),
}

impl From<ActivateError> for PluginError {
    fn from(error: ActivateError) -> PluginError {
        let code = match &error {
            ActivateError::NotWaiting => ErrorCode::Internal,
            ActivateError::State(_) => ErrorCode::Io,
            ActivateError::Ended(_) => ErrorCode::PeerLost,
            ActivateError::Qmp(source) => qmp_code(source),
        };
        PluginError::new(code, error)
    }
}

fn qmp_code(error: &QmpError) -> ErrorCode {
    match error {
        QmpError::Closed => ErrorCode::PeerLost,
        QmpError::TimedOut { .. } => ErrorCode::TimedOut,
        QmpError::Io(_) => ErrorCode::Io,
        QmpError::TooLong | QmpError::Malformed(_) | QmpError::Unexpected { .. } => ErrorCode::Corrupt,
        QmpError::Refused { .. } => ErrorCode::Refused,
    }
}

/// Whether an error of the set-up may have no other cause than QEMU's end.
pub(crate) fn may_be_the_end(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Handshake { source: QmpError::Closed, .. }
            | StartError::Lend(QmpError::Closed)
            | StartError::Attach(AttachError::Qmp(QmpError::Closed))
            | StartError::Inspect(InspectError::Qmp(QmpError::Closed))
            | StartError::Track(TrackError::Gone | TrackError::Map(_))
            | StartError::Track(TrackError::Inject(InjectError::Ended | InjectError::Map(_)))
    )
}
