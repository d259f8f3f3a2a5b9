//! Transport plugin `file`: writes what a primary sends to a file, a *trace*. Nobody stands by: the guest is not protected.
//!
//! ```toml
//! [transport]
//! plugin = "file"
//! path = "redis.trace"    # must not exist yet; relative to the configuration file
//! ```
//! A trace is what a codec or a policy can be tried on, without a guest: `aventine replay`. It holds the guest's memory, so
//! only its owner may read it.
//!
//! Invariant: a trace that ends early, because its writer was killed or the disk was full, is whole up to its last entry.
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod trace;

pub use trace::{Entry, Reader, TraceError, Writer};

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    Channel, ChannelRx, ChannelTx, ErrorCode, Factory, Link, LinkAbort, Listener, PluginEntry, PluginError,
    Transport, parse_config, schema,
};
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

aventine_api::inventory::submit! {
    PluginEntry {
        name: "file",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Writes the checkpoint stream to a file, for `aventine replay`; protects nothing",
        validate: &|text| parse_config::<Keys>(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Transport(&|text, context| {
            let keys: Keys = parse_config(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Recorder { path: context.config_dir.join(keys.path) }))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// The trace's file; must not exist yet.
    path: PathBuf,
}

/// Why nothing can be recorded.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("{} exists already; remove it, or set another `path`", .0.display())]
    Exists(PathBuf),
    #[error("Cannot make {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("Cannot write to the trace")]
    Write(#[source] io::Error),
    #[error("The recording has ended")]
    Ended,
    #[error("A recording is made by the primary alone: nobody stands by for it")]
    Standby,
}

impl From<RecordError> for PluginError {
    fn from(error: RecordError) -> PluginError {
        let code = match error {
            RecordError::Exists(_) | RecordError::Standby => ErrorCode::Config,
            RecordError::Make { .. } => ErrorCode::Unavailable,
            RecordError::Write(_) => ErrorCode::Io,
            RecordError::Ended => ErrorCode::PeerLost,
        };
        PluginError::new(code, error)
    }
}

struct Recorder {
    path: PathBuf,
}

impl Transport for Recorder {
    fn connect(&mut self, _: Duration) -> Result<Box<dyn Link>, PluginError> {
        let path = self.path.clone();
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RecordError::Exists(path.clone()),
            _ => RecordError::Make { path: path.clone(), source },
        })?;
        let writer = Writer::new(file).map_err(RecordError::Write)?;
        let shared =
            Arc::new(Shared { began: Instant::now(), writer: Mutex::new(writer), ended: End::default() });
        Ok(Box::new(FileLink { path, shared, channels: 0 }))
    }

    fn listen(&mut self, _: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        Err(RecordError::Standby.into())
    }
}

/// What the channels of a recording share.
struct Shared {
    began: Instant,
    writer: Mutex<Writer<File>>,
    ended: End,
}

/// Ends the waiting of those who wait for bytes that never come.
#[derive(Default)]
struct End {
    ended: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

struct FileLink {
    path: PathBuf,
    shared: Arc<Shared>,
    channels: u16,
}

impl Link for FileLink {
    fn open(&mut self, name: &str, _route: Option<&str>, _limit: Duration) -> Result<Channel, PluginError> {
        let number = self.channels;
        self.channels += 1;
        self.shared.write(|writer| writer.channel(number, name))?;
        let (tx, rx) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        Ok((Box::new(FileTx { number, shared: tx }), Box::new(NothingRx(rx))))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.shared) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        self.path.display().to_string()
    }

    fn answers(&self) -> bool {
        false
    }
}

impl Shared {
    fn write(&self, write: impl FnOnce(&mut Writer<File>) -> io::Result<()>) -> Result<(), PluginError> {
        if self.ended.ended.load(Ordering::Acquire) {
            return Err(RecordError::Ended.into());
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(write(&mut writer).map_err(RecordError::Write)?)
    }
}

impl LinkAbort for Shared {
    fn abort(&self) {
        let _lock = self.ended.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.ended.store(true, Ordering::Release);
        self.ended.changed.notify_all();
    }
}

struct FileTx {
    number: u16,
    shared: Arc<Shared>,
}

impl ChannelTx for FileTx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let began = self.shared.began;
        self.shared.write(|writer| writer.bytes(self.number, began.elapsed(), parts))
    }
}

/// Nothing ever comes from a file.
struct NothingRx(Arc<Shared>);

impl ChannelRx for NothingRx {
    fn recv(&mut self, _: &mut [u8]) -> Result<(), PluginError> {
        let end = &self.0.ended;
        let mut lock = end.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !end.ended.load(Ordering::Acquire) {
            lock = end.changed.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        Err(RecordError::Ended.into())
    }
}

#[cfg(test)]
mod tests;
