//! Two hosts that protect a guest or two, on one machine.
//!
//! ```text
//! WORK/lock                held while the lab exists
//! WORK/arbiter             what both sides ask
//! WORK/host-a, WORK/host-b what a real host would have of its own, made anew for each pair:
//!   demo.toml                the same on both
//!   disk.img                 each host's copy of the guest's disk
//!   arbiter                  the host's way to what both sides ask
//!   state                    sockets and records
//!   aventine.log             what the process printed
//! WORK/host-a-2, …         the same for a second guest
//! ```

use crate::network::{GUESTS, Host, Namespace, Network, NetworkError, TAPS};
use crate::node::{self, Node, NodeError, Role};
use crate::vm::{MONITOR, NETWORK, Vm};
use aventine_engine::Status;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use toml::Value;

/// Longest that a host may take for the initial copy, on a slow and busy machine.
pub const STARTUP: Duration = Duration::from_secs(120);
/// Longest that a takeover may take, on a slow and busy machine.
pub const TAKEOVER: Duration = Duration::from_secs(30);
/// Where the first guest's hosts listen; the second's have the port after it.
const FIRST_PORT: usize = 7400;
/// Bytes of the guest's disk.
const DISK: u64 = 64 << 20;
/// RAM of the guest.
const RAM: &str = "192M";
/// A machine without anything that is not needed: a quick boot and a small device state.
const MACHINE: &str = "pc,usb=off,vmport=off";
/// The clock that goes on most evenly in another QEMU process is HPET: unlike the TSC it follows the guest's own time.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet mitigations=off no_timer_check cryptomgr.notests clocksource=hpet";

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
    /// Where the primary looks for the standby, if something stands between the hosts.
    pub proxy: Option<String>,
    /// Whether the hosts' link is encrypted, with keys from `aventine keys`.
    pub tls: bool,
    /// Within how many epochs the audit compares all of guest memory, if there is one.
    pub audit: Option<u32>,
    /// Whether the guest is a VM that runs already when the primary comes: it is attached to, and has no disk.
    pub attach: bool,
    /// Whether the guest reaches its disk by vhost-user-blk instead of NBD.
    pub vhost_user: bool,
    /// Staging memory of each side, as the configuration writes it.
    pub staging: String,
    /// A shared object and the text of the `[policy]` table that its plugin serves, instead of `fixed`.
    pub policy: Option<(PathBuf, String)>,
    /// The shared objects in this directory have the plugins; none that is built in is used.
    pub plugins: Option<PathBuf>,
    /// The file, in the primary's directory, to which the guest is recorded instead of being protected.
    pub record: Option<PathBuf>,
    /// Tables that take the place of the configuration's own, such as `[policy]` and `[plugins]`.
    pub tables: toml::Table,
    /// QEMU's arguments besides those that every guest has.
    pub qemu: Vec<String>,
    /// The kernel's words besides those that every guest has.
    pub kernel_words: String,
}

/// A guest that ends when it reboots or panics, on hosts like those of the demo. The files are still to be named.
impl Default for Parts {
    fn default() -> Parts {
        Parts {
            program: PathBuf::new(),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            work: PathBuf::new(),
            interval: "25ms".into(),
            detection: "1s".into(),
            proxy: None,
            tls: false,
            audit: None,
            attach: false,
            vhost_user: false,
            staging: "256MiB".into(),
            policy: None,
            plugins: None,
            tables: toml::Table::new(),
            record: None,
            qemu: vec!["-no-reboot".into()],
            kernel_words: "panic=-1".into(),
        }
    }
}

/// Which of the two guests that a lab has room for, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its place in [`GUESTS`].
    pub guest: usize,
    /// The host of its primary.
    pub primary: Host,
}

impl Site {
    /// The first guest, with its primary on host a.
    pub const FIRST: Site = Site { guest: 0, primary: Host::A };

    /// The guest's address.
    pub fn address(self) -> &'static str {
        GUESTS[self.guest]
    }

    /// Where a host listens for it.
    pub fn listens(self, host: Host) -> String {
        format!("{}:{}", host.address(), FIRST_PORT + self.guest)
    }

    fn standby(self) -> Host {
        self.primary.other()
    }
}

/// The hosts' network and directories.
#[derive(Debug)]
pub struct Lab {
    network: Network,
    parts: Parts,
    /// Those of `Parts::plugins`.
    shared_objects: Vec<PathBuf>,
    _lock: File,
}

/// A primary and its standby, protecting.
#[derive(Debug)]
pub struct Pair {
    detection: String,
    /// Which guest it is.
    pub site: Site,
    /// The VM that was attached to.
    pub vm: Option<Vm>,
    /// Dropped first of the two, so that it does not fail over while the pair ends.
    pub primary: Node,
    /// On the other host.
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
        let shared_objects = match &parts.plugins {
            Some(dir) => shared_objects(dir).map_err(at(dir))?,
            None => Vec::new(),
        };
        Ok(Lab { network: Network::new()?, parts, shared_objects, _lock: file })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Where the guests' clients are.
    pub fn client(&self) -> &Namespace {
        &self.network.client
    }

    /// A host's directory for a guest.
    pub fn dir(&self, host: Host, site: Site) -> PathBuf {
        let name = match site.guest {
            0 => host.name().to_owned(),
            guest => format!("{}-{}", host.name(), guest + 1),
        };
        self.parts.work.join(name)
    }

    /// Starts the first guest, on fresh hosts, and waits until it is protected.
    pub fn start(&self) -> Result<Pair, LabError> {
        self.prepare(Site::FIRST)?;
        self.launch(Site::FIRST)
    }

    /// Makes both hosts' directories for a guest anew.
    pub fn prepare(&self, site: Site) -> Result<(), LabError> {
        [Host::A, Host::B].into_iter().try_for_each(|host| self.prepare_host(host, site))
    }

    /// Starts a standby and a primary on what their hosts have, and waits until the guest is protected.
    pub fn launch(&self, site: Site) -> Result<Pair, LabError> {
        let dir = self.dir(site.primary, site);
        let vm = self.parts.attach.then(|| Vm::start(&self.command(site), RAM, &dir)).transpose();
        let vm = vm.map_err(|source| LabError::Files { path: dir, source })?;
        let standby = self.node(site.standby(), site, Role::Standby)?;
        let primary = self.node(site.primary, site, Role::Protect)?;
        let mut pair = Pair { detection: self.parts.detection.clone(), site, vm, primary, standby };
        self.await_protection(&mut pair)?;
        Ok(pair)
    }

    /// Starts the primary of a pair anew, with what the ended one left on its host, and waits until its guest is
    /// protected.
    pub fn restart_primary(&self, pair: &mut Pair) -> Result<(), LabError> {
        pair.primary = self.node(pair.site.primary, pair.site, Role::Protect)?;
        self.await_protection(pair)
    }

    /// Starts the standby of a pair anew, with what the ended one left on its host, and waits until the guest is
    /// protected again.
    pub fn restart_standby(&self, pair: &mut Pair) -> Result<(), LabError> {
        pair.standby = self.node(pair.site.standby(), pair.site, Role::Standby)?;
        pair.wait_protected()
    }

    /// Starts both sides anew, with what the ended ones left on their hosts, and waits until the guest is protected again.
    pub fn restart(&self, pair: &mut Pair) -> Result<(), LabError> {
        pair.standby = self.node(pair.site.standby(), pair.site, Role::Standby)?;
        self.restart_primary(pair)
    }

    /// Runs `aventine` on a host, in its directory for a guest, to the end.
    pub fn run(&self, host: Host, site: Site, arguments: &[&str]) -> Result<Output, LabError> {
        let dir = self.dir(host, site);
        let run = node::command(&self.parts.program, self.network.host(host), &dir, arguments).output();
        run.map_err(|source| LabError::Node(NodeError::Start { program: self.parts.program.clone(), source }))
    }

    /// Starts a process on a host, in its directory for a guest.
    pub fn node(&self, host: Host, site: Site, role: Role) -> Result<Node, NodeError> {
        Node::start(&self.parts.program, self.network.host(host), &self.dir(host, site), role)
    }

    /// Both hosts' way to the arbiter goes away, as a file server's network does.
    pub fn block_arbiter(&self, site: Site) -> Result<(), LabError> {
        [Host::A, Host::B].into_iter().try_for_each(|host| self.block_arbiter_of(host, site))
    }

    /// The way of one host goes away.
    pub fn block_arbiter_of(&self, host: Host, site: Site) -> Result<(), LabError> {
        let path = self.dir(host, site).join("arbiter");
        fs::remove_file(&path).map_err(|source| LabError::Files { path, source })
    }

    /// It is there again.
    pub fn unblock_arbiter(&self, site: Site) -> Result<(), LabError> {
        [Host::A, Host::B].into_iter().try_for_each(|host| self.unblock_arbiter_of(host, site))
    }

    /// The way of one host is there again.
    pub fn unblock_arbiter_of(&self, host: Host, site: Site) -> Result<(), LabError> {
        let path = self.dir(host, site).join("arbiter");
        symlink("../arbiter", &path).map_err(|source| LabError::Files { path, source })
    }

    fn await_protection(&self, pair: &mut Pair) -> Result<(), LabError> {
        let decided = |status: &Status| matches!(&status.state[..], "protected" | "unprotected");
        let status = pair.ask(|primary| primary.wait_for("protection", STARTUP, decided))?;
        match status.state == "protected" {
            true => Ok(()),
            false => Err(LabError::Busy(self.parts.detection.clone())),
        }
    }

    fn prepare_host(&self, host: Host, site: Site) -> Result<(), LabError> {
        let dir = self.dir(host, site);
        let made = || -> io::Result<()> {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            DirBuilder::new().mode(0o700).create(&dir)?;
            DirBuilder::new().recursive(true).create(self.parts.work.join("arbiter"))?;
            symlink("../arbiter", dir.join("arbiter"))?;
            File::create(dir.join("disk.img"))?.set_len(DISK)?;
            if self.parts.tls {
                self.give_keys(host.name(), &dir)?;
            }
            let mut configuration = self.configuration(site);
            if !self.parts.tables.is_empty() {
                let mut own = configuration.parse::<toml::Table>().map_err(io::Error::other)?;
                own.extend(self.parts.tables.clone());
                configuration = toml::to_string(&own).map_err(io::Error::other)?;
            }
            fs::write(dir.join("demo.toml"), configuration)
        };
        made().map_err(|source| LabError::Files { path: dir.clone(), source })
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
    fn command(&self, site: Site) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let number = site.guest + 1;
        let kernel_words = &self.parts.kernel_words;
        let kernel_arguments = format!("{KERNEL_ARGUMENTS} {kernel_words} address={}/24", site.address());
        let network = format!("virtio-net-pci,netdev=net0,mac=52:54:00:00:77:0{number},romfile=");
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
            "-serial",
            "file:console.log",
            "-kernel",
            &text(&self.parts.kernel),
            "-initrd",
            &text(&self.parts.initrd),
            "-append",
            &kernel_arguments,
            "-device",
            &network,
        ];
        let disk: &[&str] = match (self.parts.attach, self.parts.vhost_user) {
            (true, _) => &[],
            (false, true) => &["-device", "vhost-user-blk-pci,chardev=disk0"],
            (false, false) => &["-device", "virtio-blk-pci,drive=disk0"],
        };
        let own = self.parts.qemu.iter().map(String::as_str);
        command.into_iter().chain(disk.iter().copied()).chain(own).map(str::to_owned).collect()
    }

    fn configuration(&self, site: Site) -> String {
        let command = self.command(site).into_iter().map(Value::from).collect::<Vec<_>>();
        let command = Value::from(command);
        let (attach, guest, disk) = match self.parts.attach {
            true => (format!("attach = {{ qmp = {MONITOR:?} }}"), format!("guest = {NETWORK:?}"), ""),
            false => (
                String::new(),
                String::new(),
                match self.parts.vhost_user {
                    true => {
                        "[[disk]]\nid = \"disk0\"\nfrontend = \"vhost-user\"\nblock_size = 4096\nplugin = \"block-remus\"\nimage = \"disk.img\""
                    }
                    false => "[[disk]]\nid = \"disk0\"\nplugin = \"block-remus\"\nimage = \"disk.img\"",
                },
            ),
        };
        let value = |text: &String| Value::from(text.as_str());
        let (interval, detection) = (value(&self.parts.interval), value(&self.parts.detection));
        let staging = value(&self.parts.staging);
        let port = FIRST_PORT + site.guest;
        let peer = match &self.parts.proxy {
            Some(proxy) => value(proxy),
            None => Value::from([Host::A, Host::B].map(|host| Value::from(site.listens(host))).to_vec()),
        };
        let (name, tap) = (["demo", "demo-2"][site.guest], TAPS[site.guest]);
        let security = match self.parts.tls {
            true => r#"tls = { ca = "ca.pem", cert = "node.pem", key = "node.key" }"#,
            false => "unsafe_plaintext = true",
        };
        let mut load = self.shared_objects.clone();
        let policy = match &self.parts.policy {
            Some((file, policy)) => {
                load.push(file.clone());
                policy.clone()
            }
            None => format!("plugin = \"fixed\"\ninterval = {interval}"),
        };
        let built_in = self.parts.plugins.is_none();
        let plugins = format!("[plugins]\nbuilt_in = {built_in}\nload = {load:?}");
        let transport = match &self.parts.record {
            Some(file) => format!("plugin = \"file\"\npath = {file:?}"),
            None => {
                format!("plugin = \"tcp\"\nlisten = \"0.0.0.0:{port}\"\npeer = {peer}\n{security}")
            }
        };
        let audit = self.parts.audit.map(|n| format!("audit = {{ every = {n} }}")).unwrap_or_default();
        format!(
            r#"name = "{name}"
staging = {staging}
heartbeat = "20ms"
detection = {detection}
{audit}

{plugins}

[guest]
plugin = "qemu"
command = {command}
{attach}

[[network]]
id = "net0"
plugin = "userspace"
uplink = {{ tap = "{tap}" }}
{guest}

{disk}

[transport]
{transport}

[policy]
{policy}

[arbiter]
plugin = "shared-file"
path = "arbiter"
"#
        )
    }
}

/// The shared objects in a directory, sorted.
fn shared_objects(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir.canonicalize()?)?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "so"));
    files.sort_unstable();
    Ok(files)
}

impl Pair {
    /// Asks something of the primary. Where it fails because the standby has taken over already, the error says so.
    pub fn ask<T>(&mut self, what: impl FnOnce(&mut Node) -> Result<T, NodeError>) -> Result<T, LabError> {
        what(&mut self.primary).map_err(|error| match self.standby.status() {
            Ok(status) if status.side == "primary" => LabError::Busy(self.detection.clone()),
            _ => error.into(),
        })
    }

    /// Waits until the guest is protected.
    pub fn wait_protected(&mut self) -> Result<(), LabError> {
        self.ask(|primary| primary.wait_for("protection", STARTUP, |status| status.state == "protected"))?;
        Ok(())
    }

    /// Loses the primary's host: its controller and its QEMU, at the same moment. Waits until the standby runs the
    /// guest.
    pub fn fail_over(&mut self, guest_first: bool) -> Result<(), LabError> {
        self.ask(|primary| primary.kill(guest_first))?;
        self.standby.wait_for("the takeover", TAKEOVER, |status| status.side == "primary")?;
        Ok(())
    }

    /// Hands the guest over; what was the standby is the primary then.
    pub fn hand_over(&mut self) -> Result<(), LabError> {
        self.ask(|primary| primary.hand_over())?;
        self.standby.wait_for("playing the primary", TAKEOVER, |status| status.side == "primary")?;
        self.change_roles();
        Ok(())
    }

    /// The guest runs on the standby's host by now: what was the standby is the primary.
    pub fn change_roles(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.standby);
        self.site.primary = self.site.primary.other();
    }
}
