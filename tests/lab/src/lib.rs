//! The lab: up to three machines with Debian's stock kernel, under QEMU without KVM, joined by an Ethernet, in which
//! programs and tests of this workspace run as root.
//!
//! ```text
//! this machine                                    │ each lab host
//!   test ─┬─ agent's port (virtio-serial) ────────┼─ agent ─► processes
//!         ├─ switch ─ frames ────────────────────────┼─ eth0, 10.9.0.1N
//!         └─ monitor: link up and down            │ /dev/vda, 1 GiB of zeroes
//!   /  ─────────────────── 9p, read-only ─────────┼─ /, under an overlay of its own
//! ```
//! - Hosts start from a saved state, in about a second, and share nothing but what they send each other. See [`state`].
//! - They see this machine's files where they are here: what cargo has built runs there as it is, with its libraries. All
//!   modules of the lab's kernel can be loaded; `/dev/kvm` works after `modprobe kvm_amd`.
//! - A host that was killed can be started again: its disk is as it was left, and all else is new.
//! - A host dies with its [`Host`], and with the thread that started it.
//! - Debian's packages are fetched when they are needed, and kept: see [`packages`].
//!
//! A test that needs such a kernel is written as [`inside`] says; one with several hosts uses [`Lab`].

mod host;
mod inside;
mod machine;
mod qmp;
mod switch;
mod wire;

pub mod cpio;
pub mod image;
pub mod kernel;
pub mod packages;
pub mod run;
pub mod state;

pub use host::{Host, HostError, Input, Process, Stream};
pub use inside::{assert_test, inside, is_inside};
pub use machine::MachineError;
pub use qmp::MonitorError;

use state::State;
use std::error::Error;
use std::iter;
use switch::Switch;

/// Most hosts of a lab.
pub const MOST: usize = 3;

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// More hosts than there are addresses for, or none.
    #[error("A lab has 1 to {MOST} hosts, not {0}")]
    Count(usize),
    /// A host did not start.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Hosts on one Ethernet.
#[derive(Debug)]
pub struct Lab {
    /// In the order of their numbers.
    pub hosts: Vec<Host>,
}

impl Lab {
    /// Starts `count` hosts; makes the saved state first if there is none. Blocks.
    pub fn start(count: usize) -> Result<Lab, LabError> {
        if !(1..=MOST).contains(&count) {
            return Err(LabError::Count(count));
        }
        let state = State::make().map_err(HostError::from)?;
        let (switch, mut hosts) = (Switch::new(count), Vec::new());
        for number in 0..count {
            hosts.push(Host::start(&state, number, &switch)?);
        }
        Ok(Lab { hosts })
    }
}

/// An error and its causes, for a person.
pub fn chain(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
