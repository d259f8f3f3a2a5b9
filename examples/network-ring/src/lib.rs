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
//! It shows a place for frames behind the SDK's network buffer, and metrics. What is held is in the page cache, which a full disk or
//! a slow one can make wait: a state directory in memory cannot.
//!
//! ```text
//!             ┌ start (oldest)        ┌ end (next)      ┌ size
//!  file: [    │ length, frame │ … │ … │                 │      ]
//!             └─ pop                  └─ push, which begins at 0 again once it is at `size` or beyond
//! ```
//! `aventine_kit::network` keeps account of modes, limits and epochs, and moves the frames; its documentation has a diagram.
//!
//! Invariants: the file has room for all that may be held, from the start on. What was held by a process that died never leaves: the
//! next one begins with an empty file.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, Context, Epoch, ErrorCode, Factory, Metric, NetworkBuffer, PluginEntry, PluginError,
    parse_config, schema,
};
use aventine_kit::network::{BEYOND, Buffer, LONGEST, Store};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
            start(&device, limit, &context)
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
    if !(1..16).contains(&keys.device.len()) {
        let (message, help) = (format!("{:?} is no device name", keys.device), "use 1 to 15 characters");
        return Err(ConfigError::bad_value(&["device"], message, Some(help)));
    }
    let limit = keys.limit.as_deref().unwrap_or("64MiB");
    Ok((keys.device, u64::parse_key(&["limit"], limit, &(1 << 20..=64 << 30))?))
}

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {} with {size} bytes", .path.display())]
struct NoFile {
    path: PathBuf,
    size: u64,
    source: io::Error,
}

fn start(device: &str, limit: u64, context: &Context) -> Result<Box<dyn NetworkBuffer>, PluginError> {
    let buffer = Buffer::start(device, limit, context, || {
        let (path, size) = (context.state_dir.join(format!("{}.ring", context.id)), limit + BEYOND);
        let level = "bytes of the file in use when the last epoch was sealed";
        match create(&path, size + LONGEST as u64) {
            Ok(file) => {
                let level = context.host.metric("sealed_bytes", level);
                Ok(Ring { file, size, start: 0, end: 0, level })
            }
            Err(source) => Err(PluginError::new(ErrorCode::Unavailable, NoFile { path, size, source })),
        }
    })?;
    Ok(Box::new(buffer))
}

/// An empty file with room for so many bytes: a disk that is full says so now, and not when frames must be held.
fn create(path: &Path, size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    Ok(file)
}

struct Ring {
    /// Frames, each after its length in 4 bytes.
    file: File,
    /// Where a round ends: a frame that begins before may go on beyond.
    size: u64,
    /// Where the oldest frame begins, and the next one.
    start: u64,
    end: u64,
    level: Arc<dyn Metric>,
}

impl Ring {
    fn behind(&self, at: u64, length: usize) -> u64 {
        let next = at + length as u64;
        if next < self.size { next } else { 0 }
    }
}

impl Store for Ring {
    fn push(&mut self, framed: &[u8]) -> io::Result<()> {
        self.file.write_all_at(framed, self.end)?;
        self.end = self.behind(self.end, framed.len());
        Ok(())
    }

    fn pop(&mut self, framed: &mut Vec<u8>) -> io::Result<()> {
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, self.start)?;
        let all = 4 + u32::from_be_bytes(length) as usize;
        // A damaged disk must not make us ask for any amount of memory.
        if all > LONGEST {
            return Err(ErrorKind::InvalidData.into());
        }
        framed.resize(all, 0);
        self.file.read_exact_at(framed, self.start)?;
        self.start = self.behind(self.start, all);
        Ok(())
    }

    fn clear(&mut self) {
        self.start = self.end;
    }

    fn sealed(&mut self, _: Epoch, held: u64) {
        self.level.set(held);
    }
}
