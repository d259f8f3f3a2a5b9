//! Two hosts that protect one guest, on one machine.
//!
//! ```text
//! WORK/lock                held while the lab exists
//! WORK/arbiter             what both sides ask
//! WORK/host-a, WORK/host-b what a real host would have of its own, made anew for each pair:
//!   demo.toml                the same on both
//!   disk.img                 each host's copy of the guest's disk
//!   state                    sockets and records
//!   aventine.log             what the process printed
//! ```

use crate::network::{GUEST, Network, NetworkError, STANDBY, TAP};
use crate::node::{Node, NodeError, Role};
use crate::vm::{MONITOR, NETWORK, Vm};
use aventine_engine::Status;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use toml::Value;

/// Longest that a host may take for the initial copy, on a slow and busy machine.
pub const STARTUP: Duration = Duration::from_secs(120);
/// Longest that a takeover may take, on a slow and busy machine.
pub const TAKEOVER: Duration = Duration::from_secs(30);
/// Where the standby listens.
pub const STANDBY_ADDRESS: &str = "10.78.0.2:7400";
/// Bytes of the guest's disk.
const DISK: u64 = 64 << 20;
/// RAM of the guest.
const RAM: &str = "128M";
/// A machine without anything that is not needed: a quick boot and a small device state.
const MACHINE: &str = "pc,usb=off,vmport=off";
/// The clock that goes on most evenly in another QEMU process is HPET: unlike the TSC it follows the guest's own time.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check cryptomgr.notests clocksource=hpet";

/// Why a lab could not be set up or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A process failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A file could not be made.
    #[error("Cannot prepare {}", path.display())]
    Files {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// One side has lost the other though nobody killed anything.
    #[error(
        "The hosts lost each other before one was killed: on this machine, now, a heartbeat took longer than {0}. The \
         guest and its data are safe then, but nothing is shown; try again when the machine is less busy"
    )]
    Busy(String),
    /// Somebody else uses the directory.
    #[error("Another demo runs in {0}: end it, or name another directory with --work")]
    Taken(PathBuf),
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The `aventine` program.
    pub program: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// Directory of the lab's files.
    pub work: PathBuf,
    /// Time between two epochs, as the configuration writes it.
    pub interval: String,
    /// How long a side may be silent before it counts as lost, as the configuration writes it.
    pub detection: String,
    /// Where the primary looks for the standby: [`STANDBY_ADDRESS`], or something between the hosts.
    pub peer: String,
    /// Whether the hosts' link is encrypted, with keys from `aventine keys`.
    pub tls: bool,
    /// Whether the guest is a VM that runs already when the primary comes: it is attached to, and has no disk.
    pub attach: bool,
}

/// The hosts' network and directories.
#[derive(Debug)]
pub struct Lab {
    network: Network,
    parts: Parts,
    _lock: File,
}

/// A primary and its standby, protecting.
#[derive(Debug)]
pub struct Pair {
    detection: String,
    /// On host a, the VM that was attached to.
    pub vm: Option<Vm>,
    /// On host a. Dropped first of the two, so that it does not fail over while the pair ends.
    pub primary: Node,
    /// On host b.
    pub standby: Node,
}

impl Lab {
    /// Makes the network and takes the directory. Processes are started by [`Lab::start`].
    pub fn new(parts: &Parts) -> Result<Lab, LabError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::Files { path, source }
        };
        let mut parts = parts.clone();
        DirBuilder::new().recursive(true).create(&parts.work).map_err(at(&parts.work))?;
        for path in [&mut parts.program, &mut parts.kernel, &mut parts.initrd, &mut parts.work] {
            *path = path.canonicalize().map_err(at(path))?;
        }
        let lock = parts.work.join("lock");
        let file = File::create(&lock).map_err(at(&lock))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LabError::Taken(parts.work.clone()))?;
        Ok(Lab { network: Network::new()?, parts, _lock: file })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Starts a standby and a primary with a fresh guest and waits until the guest is protected.
    pub fn start(&self) -> Result<Pair, LabError> {
        let (a, b) = (self.prepare("host-a")?, self.prepare("host-b")?);
        let vm = self.parts.attach.then(|| Vm::start(&self.command(), RAM, &a)).transpose();
        let vm = vm.map_err(|source| LabError::Files { path: a.clone(), source })?;
        let standby = Node::start(&self.parts.program, &self.network.b, &b, Role::Standby)?;
        let primary = Node::start(&self.parts.program, &self.network.a, &a, Role::Protect)?;
        let mut pair = Pair { detection: self.parts.detection.clone(), vm, primary, standby };
        let decided = |status: &Status| matches!(&status.state[..], "protected" | "unprotected");
        let status = pair.ask(|primary| primary.wait_for("protection", STARTUP, decided))?;
        match status.state == "protected" {
            true => Ok(pair),
            false => Err(LabError::Busy(pair.detection)),
        }
    }

    /// Starts the standby of a pair anew, with what the ended one left on its host, and waits until the guest is
    /// protected again.
    pub fn restart_standby(&self, pair: &mut Pair) -> Result<(), LabError> {
        let dir = self.parts.work.join("host-b");
        pair.standby = Node::start(&self.parts.program, &self.network.b, &dir, Role::Standby)?;
        pair.ask(|primary| {
            primary.wait_for("protection anew", STARTUP, |status| status.state == "protected")
        })?;
        Ok(())
    }

    /// Starts both sides anew, with what the ended ones left on their hosts, and waits until the guest is protected again.
    pub fn restart(&self, pair: &mut Pair) -> Result<(), LabError> {
        let dir = self.parts.work.join("host-a");
        pair.primary = Node::start(&self.parts.program, &self.network.a, &dir, Role::Protect)?;
        self.restart_standby(pair)
    }

    fn prepare(&self, host: &str) -> Result<PathBuf, LabError> {
        let dir = self.parts.work.join(host);
        let made = || -> io::Result<()> {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            DirBuilder::new().mode(0o700).create(&dir)?;
            DirBuilder::new().recursive(true).create(self.parts.work.join("arbiter"))?;
            File::create(dir.join("disk.img"))?.set_len(DISK)?;
            if self.parts.tls {
                self.give_keys(host, &dir)?;
            }
            fs::write(dir.join("demo.toml"), self.configuration())
        };
        made().map_err(|source| LabError::Files { path: dir.clone(), source })?;
        Ok(dir)
    }

    /// Copies a host's keys to it; they are made once for both.
    fn give_keys(&self, host: &str, dir: &Path) -> io::Result<()> {
        let keys = self.parts.work.join("keys");
        if !keys.exists() {
            let mut make = Command::new(&self.parts.program);
            make.arg("keys").arg(&keys).args(["--node", "host-a", "--node", "host-b"]);
            let made = make.output()?;
            if !made.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
            }
        }
        let files = [
            ("ca.pem", "ca.pem"),
            (&format!("{host}.pem"), "node.pem"),
            (&format!("{host}.key"), "node.key"),
        ];
        files.iter().try_for_each(|(from, to)| fs::copy(keys.join(from), dir.join(to)).map(drop))
    }

    /// The guest's QEMU, without what connects it.
    fn command(&self) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let kernel_arguments = format!("{KERNEL_ARGUMENTS} address={GUEST}/24");
        let command = [
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-machine",
            MACHINE,
            "-m",
            RAM,
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "file:console.log",
            "-kernel",
            &text(&self.parts.kernel),
            "-initrd",
            &text(&self.parts.initrd),
            "-append",
            &kernel_arguments,
            "-device",
            "virtio-net-pci,netdev=net0,mac=52:54:00:00:77:0a,romfile=",
        ];
        let disk: &[&str] = if self.parts.attach { &[] } else { &["-device", "virtio-blk-pci,drive=disk0"] };
        command.iter().chain(disk).map(|word| (*word).to_owned()).collect()
    }

    fn configuration(&self) -> String {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let command = Value::from(self.command().into_iter().map(Value::from).collect::<Vec<_>>());
        let (attach, guest, disk) = match self.parts.attach {
            true => (format!("attach = {{ qmp = {MONITOR:?} }}"), format!("guest = {NETWORK:?}"), ""),
            false => (
                String::new(),
                String::new(),
                "[[disk]]\nid = \"disk0\"\nplugin = \"block-remus\"\nimage = \"disk.img\"",
            ),
        };
        let interval = Value::from(self.parts.interval.as_str());
        let detection = Value::from(self.parts.detection.as_str());
        let arbiter = Value::from(text(&self.parts.work.join("arbiter")));
        let peer = &self.parts.peer;
        let security = match self.parts.tls {
            true => r#"tls = { ca = "ca.pem", cert = "node.pem", key = "node.key" }"#,
            false => "unsafe_plaintext = true",
        };
        format!(
            r#"name = "demo"
heartbeat = "20ms"
detection = {detection}

[guest]
plugin = "qemu"
command = {command}
{attach}

[[network]]
id = "net0"
plugin = "userspace"
uplink = {{ tap = "{TAP}" }}
{guest}

{disk}

[transport]
plugin = "tcp"
listen = "{STANDBY}:7400"
peer = "{peer}"
{security}

[policy]
plugin = "fixed"
interval = {interval}

[arbiter]
plugin = "shared-file"
path = {arbiter}
"#
        )
    }
}

impl Pair {
    /// Asks something of the primary. Where it fails because the standby has taken over already, the error says so.
    pub fn ask<T>(&mut self, what: impl FnOnce(&mut Node) -> Result<T, NodeError>) -> Result<T, LabError> {
        what(&mut self.primary).map_err(|error| match self.standby.status() {
            Ok(status) if status.state == "active" => LabError::Busy(self.detection.clone()),
            _ => error.into(),
        })
    }

    /// Loses the primary's host: its controller and its QEMU, at the same moment. Waits until the standby runs the
    /// guest.
    pub fn fail_over(&mut self, guest_first: bool) -> Result<(), LabError> {
        self.ask(|primary| primary.kill(guest_first))?;
        self.standby.wait_for("the takeover", TAKEOVER, |status| status.state == "active")?;
        Ok(())
    }
}
