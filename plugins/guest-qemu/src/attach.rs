//! Taking over control of a VM that already runs.
//!
//! ```text
//!  connect to its monitor ─► whose process? ─► watchdog ─► what is missing? ─► all of it named, or:
//!  guest RAM found in the process ─► mapped here ─► (tracked by `track`)
//! ```
//! The VM runs throughout but for the fraction of a millisecond in which it is made to execute two system calls. Nothing
//! of it is changed that outlives the connection, other than that huge pages are forbidden in its RAM.

use crate::launch::RAM;
use crate::memory::GuestMemory;
use crate::options::{Attach, Options};
use crate::process::Process;
use crate::qmp::{Command, Qmp, QmpError};
use crate::track::address_range;
use crate::watchdog::Watchdog;
use aventine_api::{Attachments, NetAttachment};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use serde::Deserialize;
use serde_json::json;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often the networks are looked at until the buffers have connected.
const LOOK: Duration = Duration::from_millis(20);
/// How long the buffers may take for it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why a running VM cannot be protected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("Could not connect to the VM's monitor {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error(
        "The VM's monitor {} does not answer; each serves one client at a time, so add one for Aventine alone: \
         -qmp unix:PATH,server=on,wait=off", path.display()
    )]
    Greeting { path: PathBuf, source: QmpError },
    #[error("Could not watch process {pid}")]
    Process { pid: Pid, source: io::Error },
    #[error("Could not start the watchdog that resumes the VM when Aventine ends")]
    Watchdog(#[source] io::Error),
    #[error("Could not ask the VM what it is")]
    Qmp(#[from] QmpError),
    #[error("QEMU's answer to {what} has another form than expected")]
    Form { what: &'static str },
    #[error("This VM cannot be protected as it runs: {0}")]
    Lacking(Lacking),
    #[error(
        "Process {pid} does not map the guest's RAM at {address:#x}; set `pid` in `attach` to the number of QEMU's process"
    )]
    NotThere { pid: Pid, address: u64 },
    #[error("Could not open the guest's RAM in process {pid}; only root or its own user may")]
    Memory { pid: Pid, source: io::Error },
}

/// Everything that a VM would need and does not have.
#[derive(Debug)]
pub(crate) struct Lacking(Vec<Lack>);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, lack)| match i {
            0 => write!(f, "{lack}"),
            _ => write!(f, "; {lack}"),
        })
    }
}

/// One thing that a VM lacks. All but the last few need another command line for it.
#[derive(Debug, thiserror::Error)]
enum Lack {
    #[error(
        "its RAM is private to QEMU (start it with -object memory-backend-memfd,id=ram,size={bytes},share=on and \
         -machine memory-backend=ram)"
    )]
    Private { bytes: u64 },
    #[error("it has {vm} bytes of RAM, the `command` for the standby {command}")]
    Size { vm: u64, command: u64 },
    #[error("it is {vm}, the `command` for the standby runs {command}; both hosts need the same")]
    Version { vm: String, command: String },
    #[error(
        "its network {id} is not one that a buffer can connect to (start it with -netdev stream,id={id},server=on,\
         addr.type=unix,addr.path=PATH and name PATH as `guest` in the [[network]] table)"
    )]
    Network { id: String },
    #[error("disks of a VM that runs already cannot be replicated yet (the [[disk]] table {id})")]
    Disk { id: String },
    #[error("it is in the state {status:?} (it must be running or paused)")]
    Status { status: String },
}

/// A VM under control. It runs as it did before.
pub(crate) struct Attached {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) watchdog: Watchdog,
    pub(crate) memory: GuestMemory,
    /// Name of its RAM block.
    pub(crate) ram: String,
}

/// Connects to the VM and finds what protecting it takes. `dir` is what relative paths are meant from.
pub(crate) fn attach(
    options: &Options,
    attach: &Attach,
    dir: &Path,
    attachments: &Attachments,
    deadline: Instant,
) -> Result<Attached, AttachError> {
    let path = dir.join(&attach.qmp);
    let connect = |source| AttachError::Connect { path: path.clone(), source };
    let socket = UnixStream::connect(&path).map_err(connect)?;
    let listener = rustix::net::sockopt::socket_peercred(&socket).map_err(|e| connect(e.into()))?.pid;
    let pid = attach.pid.and_then(Pid::from_raw).unwrap_or(listener);
    // Before the greeting: the number cannot have passed to another process while QEMU still answers.
    let process = Process::of_others(pid).map_err(|source| AttachError::Process { pid, source })?;
    let mut qmp = Qmp::connect(OwnedFd::from(socket), deadline)
        .map_err(|source| AttachError::Greeting { path: path.clone(), source })?;
    let watchdog = Watchdog::start(qmp.as_fd()).map_err(AttachError::Watchdog)?;
    let ram = check(&mut qmp, options, dir, attachments, deadline)?;
    let memory = find_memory(&mut qmp, pid, options.ram, deadline)?;
    Ok(Attached { process, qmp, watchdog, memory, ram })
}

/// Names everything that the VM lacks; answers the name of its RAM.
fn check(
    qmp: &mut Qmp,
    options: &Options,
    dir: &Path,
    attachments: &Attachments,
    deadline: Instant,
) -> Result<String, AttachError> {
    let mut lacking = Vec::new();
    let status = status(qmp, deadline)?;
    qmp.seen.running = status == "running";
    if !matches!(&status[..], "running" | "paused" | "prelaunch") {
        lacking.push(Lack::Status { status });
    }
    let vm = version(qmp, deadline)?;
    if let Ok(command) = crate::machine::version(&options.command[0], dir)
        && command != vm
    {
        lacking.push(Lack::Version { vm, command });
    }
    let ram = check_backend(qmp, options.ram, &mut lacking, deadline)?;
    for (id, attachment) in &attachments.networks {
        match attachment {
            NetAttachment::Served(path) if await_connection(qmp, id, path, deadline)? => {}
            _ => lacking.push(Lack::Network { id: id.clone() }),
        }
    }
    lacking.extend(attachments.disks.iter().map(|(id, _)| Lack::Disk { id: id.clone() }));
    match lacking.is_empty() {
        true => Ok(ram),
        false => Err(AttachError::Lacking(Lacking(lacking))),
    }
}

fn status(qmp: &mut Qmp, deadline: Instant) -> Result<String, AttachError> {
    let answer = qmp.execute(&Command::new("query-status"), Some(deadline))?;
    answer["status"].as_str().map(str::to_owned).ok_or(AttachError::Form { what: "query-status" })
}

/// As the program's `--version` would say it.
fn version(qmp: &mut Qmp, deadline: Instant) -> Result<String, AttachError> {
    #[derive(Deserialize)]
    struct Version {
        qemu: Numbers,
        package: String,
    }
    #[derive(Deserialize)]
    struct Numbers {
        major: u32,
        minor: u32,
        micro: u32,
    }
    let answer = qmp.execute(&Command::new("query-version"), Some(deadline))?;
    let Version { qemu: Numbers { major, minor, micro }, package } =
        serde_json::from_value(answer).map_err(|_| AttachError::Form { what: "query-version" })?;
    let package = if package.is_empty() { String::new() } else { format!(" ({package})") };
    Ok(format!("QEMU emulator version {major}.{minor}.{micro}{package}"))
}

/// Checks the memory backend; answers its id.
fn check_backend(
    qmp: &mut Qmp,
    bytes: u64,
    lacking: &mut Vec<Lack>,
    deadline: Instant,
) -> Result<String, AttachError> {
    #[derive(Deserialize)]
    struct Backend {
        id: Option<String>,
        size: u64,
        share: Option<bool>,
    }
    let get = json!({ "path": "/machine", "property": "memory-backend" });
    let link = qmp.execute(&Command::with("qom-get", &get), Some(deadline))?;
    let list = qmp.execute(&Command::new("query-memdev"), Some(deadline))?;
    let list: Vec<Backend> =
        serde_json::from_value(list).map_err(|_| AttachError::Form { what: "query-memdev" })?;
    let id = link.as_str().and_then(|link| link.strip_prefix("/objects/")).unwrap_or_default();
    let Some(backend) = list.iter().find(|b| b.id.as_deref() == Some(id)) else {
        lacking.push(Lack::Private { bytes });
        return Ok(RAM.to_owned());
    };
    if backend.share != Some(true) {
        lacking.push(Lack::Private { bytes });
    }
    if backend.size != bytes {
        lacking.push(Lack::Size { vm: backend.size, command: bytes });
    }
    Ok(id.to_owned())
}

/// Waits until the network shows the buffer's connection; `false` if it does not come.
fn await_connection(qmp: &mut Qmp, id: &str, path: &Path, deadline: Instant) -> Result<bool, AttachError> {
    let limit = deadline.min(Instant::now() + CONNECT_LIMIT);
    let wanted = format!("{id}: index=0,type=stream,unix:{}", path.display());
    loop {
        let list = qmp.human("info network", deadline)?;
        if list.lines().any(|line| line.trim_start_matches([' ', '\\']) == wanted) {
            return Ok(true);
        }
        if Instant::now() >= limit {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
}

/// Maps the file that the process maps where the guest's first byte is.
fn find_memory(qmp: &mut Qmp, pid: Pid, bytes: u64, deadline: Instant) -> Result<GuestMemory, AttachError> {
    // `Host virtual address for 0x0 (ram) is 0x7f7957fff000`
    let answer = qmp.human("gpa2hva 0", deadline)?;
    let address = answer.trim().rsplit_once("is 0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
    let address = address.ok_or(AttachError::Form { what: "gpa2hva" })?;
    let failed = |source| AttachError::Memory { pid, source };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(failed)?;
    let (device, inode) = maps
        .lines()
        .find_map(|line| shared_file_at(line, address))
        .ok_or(AttachError::NotThere { pid, address })?;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // It may have been closed meanwhile.
        let Ok(found) = std::fs::metadata(&path) else { continue };
        let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
        if found.ino() == inode && format!("{major:02x}:{minor:02x}") == device {
            let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            return GuestMemory::of_file(file.map_err(|e| failed(e.into()))?, bytes).map_err(failed);
        }
    }
    Err(AttachError::NotThere { pid, address })
}

/// Device and inode of the file in a line of `/proc/PID/maps`, if it is mapped shared, from its beginning, at `address`.
fn shared_file_at(line: &str, address: u64) -> Option<(String, u64)> {
    let (start, _) = address_range(line)?;
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (mode, offset) = (fields.next()?, fields.next()?);
    let (device, inode) = (fields.next()?, fields.next()?.parse().ok()?);
    let fits = start == address && mode.ends_with('s') && offset.bytes().all(|b| b == b'0');
    (fits && inode != 0).then(|| (device.to_owned(), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_a_shared_file_from_its_beginning() {
        let line = |mode, offset, inode| {
            format!("7f00-8f00 {mode} {offset} 00:01 {inode}      /memfd:memory-backend-memfd (deleted)")
        };
        assert_eq!(shared_file_at(&line("rw-s", "00000000", 1691), 0x7f00), Some(("00:01".into(), 1691)));
        assert_eq!(shared_file_at(&line("rw-p", "00000000", 1691), 0x7f00), None);
        assert_eq!(shared_file_at(&line("rw-s", "00001000", 1691), 0x7f00), None);
        assert_eq!(shared_file_at(&line("rw-s", "00000000", 0), 0x7f00), None);
        assert_eq!(shared_file_at(&line("rw-s", "00000000", 1691), 0x7f01), None);
    }

    #[test]
    fn everything_lacking_is_said_at_once() {
        let lacks = vec![Lack::Private { bytes: 7 }, Lack::Size { vm: 1, command: 2 }];
        let text = AttachError::Lacking(Lacking(lacks)).to_string();
        assert!(text.contains("share=on") && text.contains("2"), "{text}");
    }
}
