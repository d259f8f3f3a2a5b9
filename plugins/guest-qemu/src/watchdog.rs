//! A VM that is not ours must not stay paused when we end, however we end.
//!
//! ```text
//!  this process ══ pipe, never written ══► helper (sh)          alive: the helper waits
//!       └──────── QMP connection ────────────┘                  gone:  the pipe ends ─► `cont` ─► its answer ─► exit
//! ```
//! The helper shares our QMP connection, so QEMU takes no other client before it is done: whoever attaches next finds the
//! VM running and no command of ours on its way. QEMU drops what is queued when a connection ends, so the helper waits for
//! the answer. A byte 0xff makes QEMU forget a command that we left incomplete.
//!
//! It survives signals of a terminal and SIGTERM. It does not survive SIGKILL: a service manager must kill the main
//! process alone (systemd: `KillMode=process`).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Its input is the pipe, its output the QMP connection.
const SCRIPT: &str = r#"trap '' HUP INT TERM
read -r nothing
printf '\377\n{"execute":"cont","id":"watchdog"}\n'
while read -r line <&1; do
    case $line in *watchdog*) exit 0 ;; esac
done"#;

/// While it lives the VM may be paused. Dropping it resumes the VM.
pub(crate) struct Watchdog {
    helper: Child,
}

impl Watchdog {
    /// Watches over the VM behind `qmp`, which must be ready for commands.
    pub(crate) fn start(qmp: BorrowedFd<'_>) -> io::Result<Watchdog> {
        let output: OwnedFd = qmp.try_clone_to_owned()?;
        let helper = Command::new("sh")
            .arg0("aventine-watchdog")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::null())
            .process_group(0)
            .current_dir("/")
            .spawn()?;
        Ok(Watchdog { helper })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Our end of the pipe. The helper ends once QEMU has answered, or has closed the connection.
        drop(self.helper.stdin.take());
        if let Err(error) = self.helper.wait() {
            tracing::error!(%error, "could not make sure that the VM runs on");
        }
    }
}
