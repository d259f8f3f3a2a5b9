//! The program's exit codes, in one place.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Error = 1,
    Configuration = 2,
    NotRunning = 3,
    Refused = 5,
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What `--help` says about them.
pub(crate) const HELP: &str = "\
Exit codes:
   0  done
   1  an error, told on stderr
   2  the configuration is not valid, or asks for something impossible
   3  nothing that could answer is running
   5  the standby refused
  64  wrong usage of the command line

AVENTINE_LOG (or RUST_LOG) sets what is logged to stderr, for example AVENTINE_LOG=debug.";
