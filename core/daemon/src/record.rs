//! `aventine demo --record`: a small trace of a real guest.

use crate::exit::Exit;
use crate::output::{tell, tell_error};
use crate::replay::{StrategyError, recorded_codec};
use aventine_api::Epoch;
use aventine_demo::{DemoError, DemoOptions, EPOCHS, Recorded};
use aventine_replay::TrimError;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("{} exists already; remove it, or name another file", .0.display())]
    Exists(PathBuf),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Codec(#[from] StrategyError),
    #[error(transparent)]
    Trim(#[from] TrimError),
    #[error("Cannot remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Records the demo's guest to `file`.
pub(crate) fn record(options: &DemoOptions, file: &Path) -> Exit {
    match recorded(options, file) {
        Ok(()) => {
            tell(format_args!(
                "{EPOCHS} epochs are in {}; `aventine replay` makes use of them",
                file.display()
            ));
            Exit::Done
        }
        Err(error) => {
            tell_error(&error);
            Exit::Error
        }
    }
}

fn recorded(options: &DemoOptions, file: &Path) -> Result<(), RecordError> {
    if file.exists() {
        return Err(RecordError::Exists(file.to_owned()));
    }
    let Recorded { trace, from } = aventine_demo::record(options)?;
    let mut codec = recorded_codec(&trace)?;
    aventine_replay::trim(&trace, (Epoch(from), EPOCHS), codec.as_mut(), file)?;
    // It holds all of the guest's memory.
    std::fs::remove_file(&trace).map_err(|source| RecordError::Remove { path: trace, source })
}
