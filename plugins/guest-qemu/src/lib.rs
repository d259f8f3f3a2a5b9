//! Guest plugin: stock QEMU, started, controlled through QMP, with its memory shared.
//!
//! ```toml
//! [guest]
//! plugin = "qemu"
//! command = ["qemu-system-x86_64", "-accel", "kvm", "-m", "2G", "-nodefaults", "-display", "none",
//!            "-device", "virtio-net-pci,netdev=net0", "-device", "virtio-blk-pci,drive=disk0"]
//! ```
//! The command is the same on both hosts. What connects it is added here: guest RAM, the control connection, and one
//! backend for each `[[network]]` and `[[disk]]` under the id of its table, which the command's devices name.
//!
//! ```text
//!   this process                                                      QEMU (child)
//!  ┌────────────────────────────┐                                    ┌──────────────────────────────┐
//!  │ regions() ◄── GuestMemory ─┼── memfd aventine-ram ──────────────┼─► guest RAM ◄─ vCPUs, devices │
//!  │ dirty()   ◄── Tracker ─────┼── userfaultfd made in QEMU,        │     ▲ write-protected,        │
//!  │                            │   PAGEMAP_SCAN of /proc/PID ───────┼─────┘ asynchronously          │
//!  │ pause, resume, poll ─ Qmp ─┼── socketpair ──────────────────────┼─► QMP monitor                 │
//!  │ finish_state() ◄───────────┼── memfd aventine-state ◄───────────┼── xen-save-devices-state      │
//!  │ activate(state) ───────────┼── memfd aventine-incoming ─────────┼─► migrate-incoming            │
//!  │                            │   qemu.log ◄───────────────────────┼── stdout, stderr              │
//!  └────────────────────────────┘                                    └──────────────────────────────┘
//!
//!  primary:  start (-S) ─► paused ⇄ running          standby:  start (-incoming defer) ─► waiting ─► running ⇄ paused
//! ```
//!
//! With `attach = { qmp = "PATH" }` the primary takes a VM that runs already in the place of one of its own (`attach`):
//! RAM is then whatever file that QEMU maps, the monitor a unix socket, and the VM outlives this process, never paused
//! (`watchdog`).
//!
//! Invariants:
//! - A QEMU that was started here ends with the thread that called [`start`](aventine_api::Guest::start): the kernel kills it. That thread must
//!   live as long as the guest.
//! - Whatever the guest can write or say goes through what is attached; anything else in the machine is refused by name
//!   before the guest runs (`inspect`). Devices plugged in later through a monitor of the user's own are not checked.
//! - A page that QEMU has written since it was last reported has its dirty bit set (`track`), from the start on, on
//!   either side. What this process writes into a standby's image sets none.
//! - No thread of its own and no time limit inside a pause: a call waits for QEMU's answer or for its end, and its end
//!   is noticed at once.
//!
//! Needs an x86-64 host with Linux 6.7 or later, or an older one with soft-dirty bits.

mod attach;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod inject;
mod inspect;
mod launch;
mod machine;
mod memory;
mod options;
mod process;
mod qmp;
mod saved;
mod track;
mod watchdog;

use aventine_api::{
    Attachments, ConfigError, Context, ErrorCode, Factory, Guest, GuestEvent, PageBitmap, PluginEntry,
    PluginError, Region, Side, inventory, schema,
};
use error::{CallError, StartError};
use machine::Machine;
use options::Options;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

inventory::submit! {
    PluginEntry {
        name: "qemu",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Stock QEMU, controlled through QMP",
        validate: &validate,
        schema: &schema::<options::Table>,
        factory: Factory::Guest(&make),
        upkeep: None,
    }
}

fn validate(config: &str) -> Result<(), ConfigError> {
    Options::parse(config).map(drop)
}

fn make(config: &str, context: Context) -> Result<Box<dyn Guest>, PluginError> {
    let options = Options::parse(config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
    let here = PathBuf::from(".");
    let dir = if context.config_dir.as_os_str().is_empty() { here } else { context.config_dir };
    Ok(Box::new(QemuGuest { options, side: context.side, dir, state_dir: context.state_dir, machine: None }))
}

struct QemuGuest {
    options: Options,
    side: Side,
    /// QEMU's working directory.
    dir: PathBuf,
    state_dir: PathBuf,
    machine: Option<Machine>,
}

impl QemuGuest {
    fn machine(&mut self) -> Result<&mut Machine, CallError> {
        self.machine.as_mut().ok_or(CallError::NotStarted)
    }
}

impl Guest for QemuGuest {
    fn signature(&mut self) -> Result<Vec<(String, String)>, PluginError> {
        let command = &self.options.command;
        let version = machine::version(&command[0], &self.dir)?;
        let facts = [
            ("guest memory in bytes", self.options.ram.to_string()),
            ("QEMU command", format!("{command:?}")),
            ("QEMU version", version),
        ];
        Ok(facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn start(&mut self, attachments: &Attachments) -> Result<(), PluginError> {
        if self.machine.is_some() {
            return Err(StartError::Again.into());
        }
        let machine = Machine::start(&self.options, self.side, &self.dir, &self.state_dir, attachments)?;
        self.machine = Some(machine);
        Ok(())
    }

    fn regions(&self) -> Vec<Region> {
        self.machine.iter().map(|m| m.memory().region()).collect()
    }

    fn backing(&self, region: usize) -> Option<BorrowedFd<'_>> {
        self.machine.as_ref().filter(|_| region == 0).map(|m| m.memory().as_fd())
    }

    fn pause(&mut self) -> Result<(), PluginError> {
        Ok(self.machine()?.pause()?)
    }

    fn start_state(&mut self) -> Result<(), PluginError> {
        Ok(self.machine()?.start_state()?)
    }

    fn finish_state(&mut self, state: &mut Vec<u8>) -> Result<(), PluginError> {
        Ok(self.machine()?.finish_state(state)?)
    }

    fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), PluginError> {
        Ok(self.machine()?.dirty(dirty)?)
    }

    fn populated(&mut self, pages: &mut PageBitmap) -> Result<(), PluginError> {
        Ok(self.machine()?.populated(pages)?)
    }

    fn resume(&mut self) -> Result<(), PluginError> {
        Ok(self.machine()?.resume()?)
    }

    fn process(&self) -> Option<u32> {
        self.machine.as_ref().map(Machine::pid)
    }

    fn poll(&mut self) -> Result<Option<GuestEvent>, PluginError> {
        match &mut self.machine {
            Some(machine) => Ok(machine.poll()?),
            None => Ok(None),
        }
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), PluginError> {
        Ok(self.machine()?.activate(state)?)
    }

    fn power_down(&mut self) -> Result<(), PluginError> {
        Ok(self.machine()?.power_down()?)
    }

    fn outlives(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::outlives)
    }

    fn kill(&mut self) -> Result<(), PluginError> {
        match &mut self.machine {
            Some(machine) => Ok(machine.kill()?),
            None => Ok(()),
        }
    }
}
