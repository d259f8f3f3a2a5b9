//! Disk plugin `block-remus`: a local image whose writes go to the standby as they happen, and reach the standby's
//! image by epoch.
//!
//! ```text
//!  guest ─► Device ─┬─► image                                      ┌─► image (initial copy only)
//!                   └─► Outbox ═══ channel ═══► Staging (standby) ─┴─► epochs ─ commit, apply ─► image
//! ```
//! Invariants, each explained where it is kept:
//! - Overlapping writes reach the standby in the order in which they reached the local image (`outbox`, `ranges`).
//! - On the standby, nothing of an epoch reaches the image before its commit, and epochs are applied whole and in
//!   order (`standby`).
//! - An epoch is staged only if every change of it arrived: a barrier counts and checks them (`wire`).
//! - A guest's flush is on stable storage of this side before the world can see what the guest says next (`outbox`).
//! - An image that may be between two epochs is not started from (`marker`); one that is open is locked (`image`).
//! - When replication ends, the guest's reads and writes go on, unless the other side owns the guest (`device`).
//!
//! Keys: `image = "PATH"`, or `spec = "remus:HOST:PORT|aio:PATH"` for a channel with an address of its own; and
//! `buffer = "256MiB"`, the memory for writes on their way, at least 16 MiB and the same on both hosts. A primary's
//! image must exist; its size is the disk's. A standby creates a missing one and overwrites an existing one of the
//! same size. At a quarter of `buffer` the guest's writes wait and the epoch is asked to end; at half the standby
//! stops reading until an epoch is applied; an epoch that alone needs more is an error.
#![forbid(unsafe_code)]

mod config;
mod copy;
mod device;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod outbox;
mod ranges;
mod standby;
#[cfg(test)]
mod tests;
mod wire;

use aventine_api::{
    BlockDevice, Context, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Factory, Host,
    PluginEntry, PluginError, RecordHead, RecordRx, RecordTx, Side, schema,
};
use aventine_disk_common::image::{Image, OpenError};
use aventine_disk_common::marker::{Mark, Marker};
use config::Settings;
use device::{Access, Device};
use outbox::Outbox;
use standby::Staging;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use wire::RecordError;

/// Sealed epochs take no memory here, and the standby bounds its own.
const DEPTH: u32 = 16;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "block-remus",
        version: env!("CARGO_PKG_VERSION"),
        summary: "a local image whose writes reach the standby's image by epoch",
        validate: &|text| config::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Disk(&|text, context| {
            let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(BlockRemus::new(settings, context)?))
        }),
        upkeep: None,
    }
}

/// Why a disk could not be set up.
#[derive(Debug, thiserror::Error)]
enum SetUpError {
    #[error("Image {} holds part of a copy that a standby was receiving. Use the other host's image; or run this \
        host as the standby, which copies it again", image.display())]
    Copying { image: PathBuf },
    #[error("Image {} was kept for a primary elsewhere and never taken over: it may be old, and between two epochs. \
        Use the primary's own image; if that is lost, check this one and delete {}", image.display(), note.display())]
    Following { image: PathBuf, note: PathBuf },
    #[error("Note {} could not be read", path.display())]
    ReadNote { path: PathBuf, source: io::Error },
    #[error("Note {} could not be written", path.display())]
    WriteNote { path: PathBuf, source: io::Error },
    #[error("Image {} has {ours} bytes here, but the primary's has {theirs}. Move it away, and it is made anew; or \
        give it the same size", image.display())]
    Size { image: PathBuf, ours: u64, theirs: u64 },
    #[error("The disk is already {0}")]
    Twice(&'static str),
    #[error("The disk cannot be replicated: no guest writes to it here")]
    NotWritable,
    #[error("The disk cannot be received: the guest runs here")]
    NotStandby,
    #[error("The disk receives nothing: it has no channel yet")]
    NoChannel,
    #[error("The disk is not replicated")]
    NotReplicated,
    #[error("The primary did not describe the disk")]
    Description(#[from] RecordError),
    #[error("A thread of the disk could not be started")]
    Thread(#[source] io::Error),
}

impl From<SetUpError> for PluginError {
    fn from(error: SetUpError) -> PluginError {
        let code = match error {
            SetUpError::ReadNote { .. } | SetUpError::WriteNote { .. } | SetUpError::Thread(_) => {
                ErrorCode::Io
            }
            SetUpError::Description(_) => ErrorCode::Corrupt,
            SetUpError::Copying { .. } | SetUpError::Following { .. } | SetUpError::Size { .. } => {
                ErrorCode::Refused
            }
            _ => ErrorCode::Internal,
        };
        PluginError::new(code, error)
    }
}

/// A disk of this plugin, on either side.
struct BlockRemus {
    id: String,
    path: PathBuf,
    marker: Marker,
    route: Option<String>,
    buffer: usize,
    host: Arc<dyn Host>,
    device: Arc<Device>,
    /// Standby, once it receives.
    staging: Option<Arc<Staging>>,
    /// Threads that end by themselves and never wait for the channel.
    threads: Vec<JoinHandle<()>>,
}

impl BlockRemus {
    fn new(settings: Settings, context: Context) -> Result<BlockRemus, PluginError> {
        let path = context.config_dir.join(settings.image);
        let marker = Marker::of(&path, &context.config_dir);
        let device = match context.side {
            Side::Primary => {
                let image = Image::open(&path)?;
                let failed = |source| SetUpError::ReadNote { path: marker.path().to_owned(), source };
                match marker.read().map_err(failed)? {
                    None => Device::new(Access::ReadWrite, Some(image)),
                    Some(Mark::Copying) => return Err(SetUpError::Copying { image: path }.into()),
                    Some(Mark::Following) => {
                        return Err(
                            SetUpError::Following { image: path, note: marker.path().to_owned() }.into()
                        );
                    }
                }
            }
            Side::Standby => match Image::open(&path) {
                Ok(image) => Device::new(Access::ReadOnly, Some(image)),
                Err(OpenError::Missing { .. }) => Device::new(Access::ReadOnly, None),
                Err(e) => return Err(e.into()),
            },
        };
        Ok(BlockRemus {
            id: context.id,
            path,
            marker,
            route: settings.route,
            buffer: settings.buffer,
            host: context.host,
            device: Arc::new(device),
            staging: None,
            threads: Vec::new(),
        })
    }

    fn spawn(&self, doing: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, SetUpError> {
        thread::Builder::new().name(format!("{} {doing}", self.id)).spawn(f).map_err(SetUpError::Thread)
    }

    fn staging(&self) -> Result<&Arc<Staging>, SetUpError> {
        self.staging.as_ref().ok_or(SetUpError::NoChannel)
    }

    /// The standby's image, of the primary's size.
    fn image_of(&self, size: u64) -> Result<&Arc<Image>, PluginError> {
        if self.device.image().is_none() {
            self.device.set_image(Image::create(&self.path, size)?);
        }
        let image = self.device.image().ok_or(SetUpError::NoChannel)?;
        if image.size() != size {
            return Err(
                SetUpError::Size { image: self.path.clone(), ours: image.size(), theirs: size }.into()
            );
        }
        Ok(image)
    }
}

impl Disk for BlockRemus {
    fn depth(&self) -> u32 {
        DEPTH
    }

    fn route(&self) -> Option<String> {
        self.route.clone()
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }

    fn replicate(&mut self, tx: Box<dyn RecordTx>) -> Result<(), PluginError> {
        let image = match (self.device.access(), self.device.image()) {
            (Access::ReadWrite, Some(image)) => Arc::clone(image),
            _ => return Err(SetUpError::NotWritable.into()),
        };
        let outbox = Arc::new(Outbox::new(Arc::clone(&image), self.buffer / 4, Arc::clone(&self.host)));
        if !self.device.set_outbox(Arc::clone(&outbox)) {
            return Err(SetUpError::Twice("replicated").into());
        }
        let sending = Arc::clone(&outbox);
        // Not kept: it may wait in the channel, and ends with it.
        self.spawn("send", move || sending.run(tx))?;
        let device = Arc::clone(&self.device);
        let copying = self.spawn("copy", move || copy::copy(&device, &image, &outbox))?;
        self.threads.push(copying);
        Ok(())
    }

    fn progress(&self) -> DiskProgress {
        let done = self.device.outbox().map_or(0, |o| o.copied());
        DiskProgress { done, total: self.device.size() }
    }

    fn pausing(&self) {
        if let Some(outbox) = self.device.outbox() {
            outbox.pausing();
        }
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let outbox = self.device.outbox().ok_or(SetUpError::NotReplicated)?;
        Ok(outbox.seal(epoch)?)
    }

    fn release(&mut self, _epoch: Epoch) -> Result<(), PluginError> {
        // What is sent is forgotten as it is sent: a lost epoch is never sent again.
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        if why == Disengage::NotOwner {
            self.device.set_access(Access::None);
        }
        if let Some(outbox) = self.device.outbox() {
            outbox.end(ErrorCode::Refused);
        }
        Ok(())
    }

    fn receive(&mut self, mut rx: Box<dyn RecordRx>) -> Result<(), PluginError> {
        if self.device.access() != Access::ReadOnly {
            return Err(SetUpError::NotStandby.into());
        }
        if self.staging.is_some() {
            return Err(SetUpError::Twice("received").into());
        }
        let mut payload = Vec::new();
        let RecordHead { epoch, kind } = rx.recv(&mut payload)?;
        if kind != wire::kind::DESCRIBE {
            return Err(SetUpError::Description(RecordError::Unexpected { kind, epoch }).into());
        }
        let size = wire::parse_description(&payload).map_err(SetUpError::Description)?;
        let image = Arc::clone(self.image_of(size)?);
        let failed = |source| SetUpError::WriteNote { path: self.marker.path().to_owned(), source };
        self.marker.write(Mark::Copying).map_err(failed)?;
        let staging =
            Staging::new(Arc::clone(&image), self.buffer, Arc::clone(&self.host), self.marker.clone());
        let staging = Arc::clone(self.staging.insert(Arc::new(staging)));
        let reading = Arc::clone(&staging);
        // Not kept: it may wait in the channel, and ends with it.
        self.spawn("receive", move || reading.run(rx.as_mut()))?;
        let syncing = self.spawn("sync", move || staging.keep_synced(&image))?;
        self.threads.push(syncing);
        Ok(())
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        Ok(self.staging()?.commit(epoch)?)
    }

    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let image = self.device.image().ok_or(SetUpError::NoChannel)?;
        Ok(self.staging()?.apply(epoch, image)?)
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        if self.device.access() == Access::ReadWrite {
            return Ok(());
        }
        let image = Arc::clone(self.device.image().ok_or(SetUpError::NoChannel)?);
        let staging = self.staging()?;
        staging.cut(epoch)?;
        staging.apply(epoch, &image)?;
        staging.stop();
        self.device.set_access(Access::ReadWrite);
        let (id, marker) = (self.id.clone(), self.marker.clone());
        let settling = self.spawn("settle", move || settle(&id, &image, &marker))?;
        self.threads.push(settling);
        Ok(())
    }

    fn stats(&self) -> DiskStats {
        DiskStats {
            written_bytes: self.device.written(),
            replicated_bytes: self.device.outbox().map_or(0, |o| o.sent()),
            buffered_bytes: self.staging.as_ref().map_or(0, |s| s.bytes()),
        }
    }
}

/// After taking over: the image is the guest's own once it is on stable storage. Until then, and if that fails, the
/// note beside it stays: a host that crashes meanwhile may have lost the middle of what was applied.
fn settle(id: &str, image: &Image, marker: &Marker) {
    if let Err(error) = image.sync() {
        // The guest hears of it too, with its next flush.
        tracing::error!(
            disk = id,
            error = PluginError::from(error).chain(),
            "the image taken over is not on stable storage"
        );
        return;
    }
    if let Err(error) = marker.remove() {
        tracing::error!(disk = id, note = %marker.path().display(), %error, "delete this note: the image is complete");
    }
}

impl Drop for BlockRemus {
    fn drop(&mut self) {
        if let Some(outbox) = self.device.outbox() {
            outbox.end(ErrorCode::Refused);
            if let Err(error) = outbox.release_image() {
                tracing::error!(
                    disk = self.id,
                    error = error.chain(),
                    "a flush of the guest could not be made good"
                );
            }
        }
        if let Some(staging) = &self.staging {
            staging.stop();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(disk = self.id, "a thread of the disk panicked");
            }
        }
    }
}
