//! Network plugin `ring`: holds the guest's frames in a file, between QEMU's `stream` netdev and a tap.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_network_ring.so"]
//! [[network]]
//! id = "net0"
//! plugin = "ring"
//! device = "tap-web"    # a tap that exists on each host
//! limit = "64MiB"       # most bytes held, in a file in the state directory; 1MiB to 64GiB
//! ```
//! It shows the life of a network buffer, a thread of its own with what it must tell the engine, and metrics. What is held is in
//! the page cache, which a full disk or a slow one can make wait: a state directory in memory cannot.
//!
//! ```text
//!  QEMU ══► unix socket ──► [ file: start … seal(n) … seal(n+1) … end ] ──► tap ──► world
//!       ◄══             ◄────────────────────────────────────────────────── tap ◄──
//! ```
//! Invariants: while holding, a frame leaves the file by `release` of its epoch or `disengage(Owner)` alone, in the order in
//! which the guest sent it. At the limit the guest's socket is not read, and QEMU waits. What was held by a process that
//! died never leaves: the next one begins with an empty file.

mod pump;
mod ring;
mod tap;

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, Context, Disengage, Epoch, ErrorCode, Factory, NetAttachment, NetworkBuffer, NetworkStats,
    PluginEntry, PluginError, Side, parse_config, schema,
};
use pump::{Mode, Pump, State};
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "ring",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Holds frames in a file, between a QEMU stream netdev and a tap",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Network(&|text, context| {
            let (device, limit) = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Buffer::start(&device, limit, &context).map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// The tap by which the guest's frames leave.
    device: String,
    /// Most bytes held, 1MiB to 64GiB; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    limit: Option<String>,
}

fn parse(text: &str) -> Result<(String, u64), ConfigError> {
    let keys: Keys = parse_config(text)?;
    if keys.device.is_empty() || keys.device.len() > 15 {
        let help = Some("1 to 15 characters, such as \"tap-web\"");
        return Err(ConfigError::bad_value(
            &["device"],
            format!("{:?} is no device name", keys.device),
            help,
        ));
    }
    let limit = keys.limit.as_deref().unwrap_or("64MiB");
    Ok((keys.device, u64::parse_key(&["limit"], limit, &(1 << 20..=64 << 30))?))
}

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(&'static str, #[source] io::Error);

#[derive(Debug, thiserror::Error)]
#[error("the other side owns the guest, or nobody does yet: frames are not held here")]
struct NotHere;

struct Buffer {
    attachment: NetAttachment,
    pump: Arc<Pump>,
    thread: Option<JoinHandle<()>>,
}

impl Buffer {
    fn start(device: &str, limit: u64, context: &Context) -> Result<Buffer, Failed> {
        let mode = if context.side == Side::Primary { Mode::Passing } else { Mode::Silent };
        let socket = context.state_dir.join(format!("{}.sock", context.id));
        let ring = ring::Ring::create(&context.state_dir.join(format!("{}.ring", context.id)), limit);
        let ring = ring.map_err(|e| Failed("cannot make a file in the state directory", e))?;
        let tap = tap::open(device)
            .map_err(|e| Failed("cannot use `device`: it must be a tap that nothing else uses", e))?;
        let state = State::new(ring, tap, mode, context);
        let pump = Pump::listen(&socket, state).map_err(|e| Failed("cannot listen for the guest", e))?;
        let (pump, name) = (Arc::new(pump), format!("ring {}", context.id));
        let run = Arc::clone(&pump);
        let thread = std::thread::Builder::new().name(name).spawn(move || run.run());
        let thread = thread.map_err(|e| Failed("cannot start a thread", e))?;
        Ok(Buffer { attachment: NetAttachment::Stream(socket), pump, thread: Some(thread) })
    }

    /// Works on the state, and has the thread look at it again.
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> Result<T, PluginError> {
        let done = self.pump.with(f);
        self.pump.wake();
        done.map_err(|e| PluginError::new(ErrorCode::Io, Failed("the file that holds frames failed", e)))
    }
}

impl NetworkBuffer for Buffer {
    fn depth(&self) -> u32 {
        16
    }

    fn attachment(&self) -> NetAttachment {
        self.attachment.clone()
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        let holding = self.pump.with(State::engage);
        holding.then_some(()).ok_or_else(|| PluginError::new(ErrorCode::Refused, NotHere))
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| state.seal(epoch))
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| state.release(epoch))
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.with(|state| state.disengage(why))
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        self.with(|state| {
            state.activate();
            Ok(())
        })
    }

    fn stats(&self) -> NetworkStats {
        self.pump.with(|state| state.stats())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pump.with(|state| state.stop = true);
        self.pump.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing left to clean up.
            let _ = thread.join();
        }
    }
}
