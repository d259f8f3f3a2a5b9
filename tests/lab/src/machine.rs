//! One QEMU: booted to be saved, or restored from what was saved.
//!
//! ```text
//! booted:    memory in a shared file ◄─ guest            QMP stop, migrate ─► device state in a second file
//! restored:  memory in the same file, private: what the guest changes is its own ◄─ QMP migrate-incoming, cont
//! ```
//! QEMU talks to the test through descriptors that it inherits: monitor, port and Ethernet are socket pairs, the console, what
//! QEMU says and the disk are memory. No name of it is left anywhere, and it dies with the thread that started it.

use crate::image::Image;
use crate::qmp::{Monitor, MonitorError};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::iter;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU cannot be started.
    #[error("Starting QEMU (package qemu-system-x86)")]
    Start(#[source] io::Error),
    /// QEMU does not do what it is told.
    #[error("{step}: QEMU says: {said}")]
    Monitor {
        /// What was being done.
        step: &'static str,
        /// QEMU's standard error.
        said: String,
        /// What the monitor answered.
        source: MonitorError,
    },
    /// The machine did not come up.
    #[error("{step}: QEMU says: {said}; the console says:\n{console}\n")]
    Silent {
        /// What was being done.
        step: &'static str,
        /// QEMU's standard error.
        said: String,
        /// The end of the console.
        console: String,
        /// What was received instead.
        source: io::Error,
    },
}

/// Longest that QEMU or the guest may take for any step, on a slow and busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
const PROGRAM: &str = "qemu-system-x86_64";
/// RAM: enough for a KVM guest inside.
const MEMORY: &str = "1G";
/// Bytes of the disk, which takes as much memory as was written to it.
const DISK: u64 = 1 << 30;
/// No virtual hardware that takes time to find. Migration carries what is not in the memory's file.
const FLAGS: [&str; 16] = [
    "-accel",
    "tcg",
    "-cpu",
    "max",
    "-m",
    MEMORY,
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
    "-machine",
    "q35,memory-backend=ram",
    "-device",
    // The kernel's random numbers must not be those of other machines restored from the same state.
    "vmgenid,guid=auto",
    "-device",
    "virtio-serial-pci",
];
const DEVICES: [&str; 10] = [
    "-device",
    "virtserialport,chardev=port",
    "-device",
    "virtio-net-pci,netdev=net,romfile=",
    "-device",
    "virtio-blk-pci,drive=disk",
    "-fsdev",
    "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
    "-device",
    "virtio-9p-pci,fsdev=host,mount_tag=host",
];
/// HPET follows the guest's own time, and so goes on evenly in another QEMU process.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check cryptomgr.notests clocksource=hpet";

/// What a saved state depends on besides the image.
pub(crate) fn recipe() -> Result<Vec<u8>, MachineError> {
    let version = Command::new(PROGRAM).arg("--version").output().map_err(MachineError::Start)?.stdout;
    let words = FLAGS.iter().chain(&DEVICES).chain([&KERNEL_ARGUMENTS]).map(|word| word.as_bytes());
    Ok(words.chain([version.as_slice(), &DISK.to_le_bytes()]).collect::<Vec<_>>().concat())
}

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    /// To whoever is PID 1, then to the agent.
    pub(crate) port: UnixStream,
    /// Where its frames come from and go to, until someone takes it.
    pub(crate) ethernet: Option<UnixStream>,
    monitor: Monitor,
    console: File,
    said: File,
    disk: File,
}

impl Machine {
    /// Boots `image` with its memory in the file `ram`, saves all else in `devices` and ends the machine.
    pub(crate) fn save(image: &Image, ram: &Path, devices: &File) -> Result<(), MachineError> {
        let mut command = Command::new(PROGRAM);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
        command.args(["-append", KERNEL_ARGUMENTS]);
        let mut machine = Machine::start(command, ram, "on", devices, new_disk()?)?;
        let mut word = [0; b"ready\n".len()];
        machine.port.read_exact(&mut word).map_err(|source| machine.silent("Booting a lab host", source))?;
        // The file as this process has it open: QEMU closes all that `cat` would inherit.
        let to = format!("exec:cat >/proc/{}/fd/{}", std::process::id(), devices.as_raw_fd());
        let monitor = &mut machine.monitor;
        let saved = monitor.execute("stop", &json!({})).and_then(|()| {
            monitor.execute("migrate-set-capabilities", &capabilities())?;
            monitor.execute("migrate", &json!({ "uri": to }))?;
            monitor.migrated("migrate")
        });
        saved.map_err(|source| machine.refused("Saving a lab host", source))
    }

    /// Starts a machine from what was saved, where nothing had been read of any disk.
    pub(crate) fn restore(ram: &Path, devices: &File, disk: File) -> Result<Machine, MachineError> {
        let mut command = Command::new(PROGRAM);
        command.args(["-incoming", "defer"]);
        let mut machine = Machine::start(command, ram, "off", devices, disk)?;
        let from = format!("fd:{}", devices.as_raw_fd());
        let monitor = &mut machine.monitor;
        let restored = monitor.execute("migrate-set-capabilities", &capabilities()).and_then(|()| {
            monitor.execute("migrate-incoming", &json!({ "uri": from }))?;
            monitor.migrated("migrate-incoming")?;
            monitor.execute("cont", &json!({}))
        });
        match restored {
            Ok(()) => Ok(machine),
            Err(source) => Err(machine.refused("Restoring a lab host", source)),
        }
    }

    fn start(
        mut qemu: Command,
        ram: &Path,
        share: &str,
        devices: &File,
        disk: File,
    ) -> Result<Machine, MachineError> {
        let made = || -> io::Result<_> {
            let pairs = [UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?];
            Ok((pairs, in_memory("lab-console")?, in_memory("lab-qemu")?))
        };
        let (pairs, console, said) = made().map_err(MachineError::Start)?;
        let [(monitor, to_monitor), (port, to_port), (ethernet, to_ethernet)] = pairs;
        let inherit = [
            to_monitor.as_raw_fd(),
            to_port.as_raw_fd(),
            to_ethernet.as_raw_fd(),
            console.as_raw_fd(),
            disk.as_raw_fd(),
            devices.as_raw_fd(),
        ];
        qemu.args(FLAGS).arg("-object").arg(memory(ram, share));
        qemu.args([
            "-chardev",
            &format!("socket,id=monitor,fd={}", inherit[0]),
            "-mon",
            "monitor,mode=control",
        ]);
        qemu.args(["-chardev", &format!("socket,id=port,fd={}", inherit[1])]);
        qemu.args(["-netdev", &format!("socket,id=net,fd={}", inherit[2])]);
        qemu.args(["-serial", &format!("file:/proc/self/fd/{}", inherit[3])]);
        let drive = format!("file=/proc/self/fd/{},format=raw,if=none,id=disk,cache=unsafe", inherit[4]);
        qemu.args(["-drive", &format!("{drive},file.locking=off")]).args(DEVICES);
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
        qemu.stderr(said.try_clone().map_err(MachineError::Start)?);
        let parent = rustix::process::getpid();
        // SAFETY: what runs there makes system calls only.
        unsafe { qemu.pre_exec(move || prepare_child(&inherit, parent)) };
        let child = qemu.spawn().map_err(MachineError::Start)?;
        let limited = monitor.set_read_timeout(Some(LIMIT)).and_then(|()| {
            port.set_read_timeout(Some(LIMIT))?;
            port.set_write_timeout(Some(LIMIT))
        });
        limited.map_err(MachineError::Start)?;
        // So that the end of QEMU is the end of these.
        drop((to_monitor, to_port, to_ethernet));
        let step = "Starting QEMU";
        let monitor = Monitor::new(monitor);
        let monitor = monitor.map_err(|source| MachineError::Monitor { step, said: text(&said), source })?;
        Ok(Machine { child, port, ethernet: Some(ethernet), monitor, console, said, disk })
    }

    /// The disk, for the machine that comes after this one.
    pub(crate) fn disk(&self) -> Result<File, MachineError> {
        self.disk.try_clone().map_err(MachineError::Start)
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Plugs its network cable in, or pulls it.
    pub(crate) fn link(&mut self, up: bool) -> Result<(), MachineError> {
        let done = self.monitor.execute("set_link", &json!({ "name": "net", "up": up }));
        done.map_err(|source| self.refused("Changing a lab host's link", source))
    }

    /// What the kernel, PID 1 and the agent have said.
    pub(crate) fn console(&self) -> String {
        text(&self.console)
    }

    /// The error of a machine that did not do what was expected.
    pub(crate) fn silent(&self, step: &'static str, source: io::Error) -> MachineError {
        MachineError::Silent { step, said: text(&self.said), console: self.console(), source }
    }

    fn refused(&self, step: &'static str, source: MonitorError) -> MachineError {
        MachineError::Monitor { step, said: text(&self.said), source }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A disk of zeroes.
pub(crate) fn new_disk() -> Result<File, MachineError> {
    let made = in_memory("lab-disk").and_then(|disk| disk.set_len(DISK).map(|()| disk));
    made.map_err(MachineError::Start)
}

fn in_memory(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn capabilities() -> Value {
    let on = |name| json!({ "capability": name, "state": true });
    json!({ "capabilities": [on("x-ignore-shared"), on("events")] })
}

/// In QEMU's options a comma is written twice.
fn memory(ram: &Path, share: &str) -> OsString {
    let mut option = format!("memory-backend-file,id=ram,size={MEMORY},share={share},mem-path=").into_bytes();
    for &byte in ram.as_os_str().as_bytes() {
        option.extend(iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(option)
}

fn text(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().map_or(0, |metadata| metadata.len() as usize)];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) if bytes.is_empty() => "nothing".to_owned(),
        Ok(()) => String::from_utf8_lossy(&bytes).trim_end().replace('\r', ""),
        Err(error) => format!("nothing that could be read ({error})"),
    }
}

/// Runs in the child between fork and exec.
fn prepare_child(inherit: &[RawFd], parent: Pid) -> io::Result<()> {
    for &fd in inherit {
        // SAFETY: the parent holds these descriptors across the fork, so they are open here.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that ended before the line above sends no signal any more.
    match getppid() == Some(parent) {
        true => Ok(()),
        false => Err(Errno::SRCH.into()),
    }
}
