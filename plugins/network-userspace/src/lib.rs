//! Network plugin `userspace`: holds the guest's frames in this process, between QEMU's `stream` netdev and an uplink.
//!
//! ```text
//!             unix socket                 ┌ open ─ seal ─► sealed ─ release ┐            tap, or a unix socket
//!  QEMU  ◄══════════════════► guest port ─┤                                 ├─► out ─► uplink ══════════► world
//!                                   ▲     └──────────── passing ────────────┘              │
//!                                   └──────────────────────── inbound ◄────────────────────┘
//! ```
//! The guest's QEMU connects to a socket in the state directory. With `guest = "PATH"`, on the primary, it is a VM that
//! runs already and listens there itself; the buffer connects to it whenever it is not connected.
//!
//! Invariants:
//! - While holding, a frame reaches `out` only by [`NetworkBuffer::release`] of the epoch it was sealed into, or by
//!   `disengage(Owner)`.
//! - Frames leave in the order in which the guest sent them.
//! - A frame from the guest is never dropped while the uplink takes it: at the limit the buffer stops reading, and QEMU
//!   waits. What the uplink itself refuses is counted.
//! - After `disengage(NotOwner)` nothing is in `out` and nothing gets there.
//!
//! One thread moves bytes; the epoch verbs work on the same state under a lock that is held for one batch of
//! non-blocking system calls at most.
//!
//! Beside that, copies of recent frames of both ways go to the standby, which repeats at a takeover what was lost with
//! the primary: `copier` says what and why, `recent` what is repeated. And a standby that suspects the primary keeps what
//! the world sends from then on: `attract`. Holding does not depend on either.

mod attract;
mod buffer;
mod copier;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod port;
mod pump;
mod recent;
mod settings;
mod uplink;
mod wire;

use aventine_api::{
    Context, Disengage, Epoch, ErrorCode, Factory, NetAttachment, NetworkBuffer, NetworkStats, PluginEntry,
    PluginError, RecordRx, RecordTx, Side, inventory, schema,
};
use buffer::{Buffer, Mode};
use copier::Copier;
use pump::Pump;
use recent::{Recent, Repeat};
use settings::Settings;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sealed epochs that fit beside the open one: the list of seals is bounded by nothing else.
const DEPTH: u32 = 16;

inventory::submit! {
    PluginEntry {
        name: "userspace",
        version: env!("CARGO_PKG_VERSION"),
        summary: "holds frames in this process, between a QEMU stream netdev and a tap or a unix stream socket",
        validate: &|config| Settings::parse(config).map(drop),
        schema: &schema::<settings::Keys>,
        factory: Factory::Network(&|config, context| Ok(Box::new(Userspace::new(config, context)?))),
        upkeep: None,
    }
}

/// Holding was ended for good, or has not begun on this side.
#[derive(Debug, thiserror::Error)]
#[error("This buffer's session has ended, or another side owns the guest: it does not hold frames any more")]
struct EngageError;

/// The plugin.
struct Userspace {
    id: String,
    socket: NetAttachment,
    /// Standby: what the primary's plugin copied here.
    recent: Option<Arc<Mutex<Recent>>>,
    pump: Arc<Pump>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Userspace {
    fn new(config: &str, context: Context) -> Result<Userspace, PluginError> {
        let settings = Settings::parse(config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
        let socket = match &settings.guest {
            Some(path) if context.side == Side::Primary => {
                NetAttachment::Served(context.config_dir.join(path))
            }
            _ => NetAttachment::Stream(context.state_dir.join(format!("{}.sock", context.id))),
        };
        let mode = if context.side == Side::Primary { Mode::Passing } else { Mode::Silent };
        let pump = Pump::new(&socket, &settings, &context, Buffer::new(mode, settings.limit))?;
        let pump = Arc::new(pump);
        let runner = Arc::clone(&pump);
        let thread = std::thread::Builder::new()
            .name(format!("net {}", context.id))
            .spawn(move || runner.run())
            .map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
        Ok(Userspace { id: context.id, socket, recent: None, pump, thread: Some(thread) })
    }
}

impl NetworkBuffer for Userspace {
    fn depth(&self) -> u32 {
        DEPTH
    }

    fn attachment(&self) -> NetAttachment {
        self.socket.clone()
    }

    fn replicate(&mut self, tx: Box<dyn RecordTx>) -> Result<(), PluginError> {
        let copier = Copier::start(&self.id, tx).map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
        self.pump.with(|p| p.copy_to(Some(copier)));
        Ok(())
    }

    fn pausing(&mut self) {
        self.pump.with(|p| p.pausing());
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        if self.pump.with(|p| p.buffer.engage()) {
            Ok(())
        } else {
            Err(PluginError::new(ErrorCode::Refused, EngageError))
        }
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.pump.with(|p| p.seal(epoch));
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.pump.with(|p| p.release(epoch));
        self.pump.wake();
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.pump.with(|p| p.disengage(why));
        if why == Disengage::Owner {
            self.pump.flush_uplink();
        }
        self.pump.wake();
        Ok(())
    }

    fn receive(&mut self, rx: Box<dyn RecordRx>) -> Result<(), PluginError> {
        let recent = Recent::start(&self.id, rx).map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
        self.recent = Some(recent);
        Ok(())
    }

    fn suspect(&mut self, suspected: bool) {
        let addresses = self.recent.as_ref().map(|recent| lock(recent).addresses()).unwrap_or_default();
        self.pump.with(|p| p.suspect(suspected.then_some(addresses)));
        self.pump.wake();
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let addresses = self.recent.as_ref().map(|recent| lock(recent).addresses()).unwrap_or_default();
        let repeat = self.recent.take().map_or_else(Repeat::default, |recent| lock(&recent).repeat(epoch));
        self.pump.with(|p| p.activate(repeat, addresses));
        self.pump.wake();
        Ok(())
    }

    fn stats(&self) -> NetworkStats {
        self.pump.with(|p| p.stats())
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.pump.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to clean up.
            let _ = thread.join();
        }
        if let NetAttachment::Stream(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests;
