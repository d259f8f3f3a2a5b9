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
//! - Both sides note which blocks they change, and name the moments at which their images were the same (`history`); where
//!   they have one in common, a new session copies noted blocks only (`points`, `copy`).
//! - An image that may be old, or between two epochs, is not started from (`history`); one that is open is locked (`image`).
//! - Metadata beside the image survive a power loss at any step (`meta`).
//! - Both images are compared at one place in the order of writes (`verify`).
//! - When replication ends, the guest's reads and writes go on, unless the other side owns the guest (`device`).
//!
//! Keys: `image = "PATH"`, or `spec = "remus:HOST:PORT|aio:PATH"` for a channel with an address of its own; and
//! `buffer = "256MiB"`, the memory for writes on their way, at least 16 MiB and the same on both hosts. A primary's
//! image must exist; its size is the disk's. A standby creates a missing one and overwrites an existing one of the
//! same size. At a quarter of `buffer` the guest's writes wait and the epoch is asked to end; at half the standby
//! stops reading until an epoch is applied; an epoch that alone needs more is an error. `durable = "flush"`, or `"memory"`:
//! whether a guest's flush waits for this side's stable storage, or for the standby's memory alone while the guest is
//! protected. `direct = false` has the guest's reads and writes go through this host's page cache; without it they go past it
//! wherever the image allows (O_DIRECT). `accept_outdated = "NAME"` starts the guest once from an image that is refused as outdated; the error has the
//! name.
//!
//! Metrics: `resync_total_bytes` and `resynced_bytes`, what the newest copy has to send and has sent.
#![forbid(unsafe_code)]

mod blocks;
mod config;
mod copy;
mod device;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod history;
mod meta;
mod outbox;
mod points;
mod ranges;
mod standby;
mod talk;
#[cfg(test)]
mod tests;
mod verify;
mod wire;

use aventine_api::{
    BlockDevice, Context, Disengage, Disk, DiskProgress, DiskStats, DiskVerification, Epoch, ErrorCode,
    Factory, Host, PluginEntry, PluginError, RecordHead, RecordRx, RecordTx, Side, schema,
};
use aventine_disk_common::image::{Image, OpenError};
use aventine_disk_common::lock;
use config::{Durable, Settings};
use copy::Figures;
use device::{Access, Device, Medium};
use history::{History, HistoryError};
use meta::Place;
use outbox::Outbox;
use points::{Answers, INTERVAL};
use standby::Staging;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use talk::Plan;
use wire::{Description, RecordError};

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
    #[error("The two images cannot be compared now: the guest is not protected by a standby that answers")]
    NotCompared,
    #[error("The two images are being compared already")]
    Comparing,
    #[error("The primary did not describe the disk")]
    Description(#[from] RecordError),
    #[error("A thread of the disk could not be started")]
    Thread(#[source] io::Error),
}

impl From<SetUpError> for PluginError {
    fn from(error: SetUpError) -> PluginError {
        let code = match error {
            SetUpError::Thread(_) => ErrorCode::Io,
            SetUpError::Description(_) => ErrorCode::Corrupt,
            SetUpError::Size { .. } | SetUpError::NotCompared | SetUpError::Comparing => ErrorCode::Refused,
            _ => ErrorCode::Internal,
        };
        PluginError::new(code, error)
    }
}

impl From<HistoryError> for PluginError {
    fn from(error: HistoryError) -> PluginError {
        let code = match error {
            HistoryError::Read { .. } | HistoryError::Write { .. } | HistoryError::Random(_) => ErrorCode::Io,
            HistoryError::Damaged { .. }
            | HistoryError::Copying { .. }
            | HistoryError::Following { .. }
            | HistoryError::Outdated { .. } => ErrorCode::Refused,
        };
        PluginError::new(code, error)
    }
}

/// A disk of this plugin, on either side.
struct BlockRemus {
    id: String,
    path: PathBuf,
    place: Place,
    route: Option<String>,
    buffer: usize,
    direct: bool,
    durable: Durable,
    /// How long a point serves before the next one is due.
    interval: Duration,
    figures: Arc<Figures>,
    host: Arc<dyn Host>,
    device: Arc<Device>,
    /// Primary: the newest comparison of both images.
    found: Arc<Mutex<DiskVerification>>,
    /// Standby, once it receives.
    staging: Option<Arc<Staging>>,
    /// Threads that end by themselves and never wait for the channel.
    threads: Vec<JoinHandle<()>>,
}

impl BlockRemus {
    fn new(settings: Settings, context: Context) -> Result<BlockRemus, PluginError> {
        let path = context.config_dir.join(settings.image);
        let place = Place::of(&path, &context.config_dir);
        let medium = |(image, history)| Medium { image: Arc::new(image), history: Arc::new(history) };
        let direct = |image: Image| if settings.direct { image.direct() } else { image };
        let device = match context.side {
            Side::Primary => {
                let image = direct(Image::open(&path)?);
                let accept = settings.accept_outdated.as_deref();
                let history = History::of_primary(place.clone(), &image, accept)?;
                Device::new(Access::ReadWrite, Some(medium((image, history))))
            }
            Side::Standby => match Image::open(&path) {
                Ok(image) => {
                    let image = direct(image);
                    let history = History::of_standby(place.clone(), &image, false)?;
                    Device::new(Access::ReadOnly, Some(medium((image, history))))
                }
                Err(OpenError::Missing { .. }) => Device::new(Access::ReadOnly, None),
                Err(e) => return Err(e.into()),
            },
        };
        Ok(BlockRemus {
            id: context.id,
            path,
            place,
            route: settings.route,
            buffer: settings.buffer,
            direct: settings.direct,
            durable: settings.durable,
            interval: INTERVAL,
            figures: Arc::new(Figures::of(&*context.host)),
            host: context.host,
            device: Arc::new(device),
            found: Arc::default(),
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
    fn medium_of(&self, size: u64) -> Result<&Medium, PluginError> {
        if self.device.medium().is_none() {
            let image = Image::create(&self.path, size)?;
            let image = if self.direct { image.direct() } else { image };
            let history = History::of_standby(self.place.clone(), &image, true)?;
            self.device.set_medium(Medium { image: Arc::new(image), history: Arc::new(history) });
        }
        let medium = self.device.medium().ok_or(SetUpError::NoChannel)?;
        let ours = medium.image.size();
        if ours != size {
            return Err(SetUpError::Size { image: self.path.clone(), ours, theirs: size }.into());
        }
        Ok(medium)
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

    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError> {
        let medium = match (self.device.access(), self.device.medium()) {
            (Access::ReadWrite, Some(medium)) => medium.clone(),
            _ => return Err(SetUpError::NotWritable.into()),
        };
        if self.device.outbox().is_some_and(|o| !o.has_ended()) {
            return Err(SetUpError::Twice("replicated").into());
        }
        let (asks, host) = (back.is_some(), Arc::clone(&self.host));
        let outbox = Arc::new(Outbox::new(medium.clone(), self.buffer / 4, self.durable, asks, host));
        self.device.set_outbox(Arc::clone(&outbox));
        let sending = Arc::clone(&outbox);
        // Not kept, nor is the one that listens: it may wait in the channel, and ends with it.
        self.spawn("send", move || sending.run(tx))?;
        if let Some(mut rx) = back {
            let (outbox, size) = (Arc::clone(&outbox), medium.image.size());
            self.spawn("listen", move || {
                if let Err(error) = outbox.talk.listen(&mut *rx, size) {
                    outbox.fail(error);
                }
            })?;
        }
        let (device, figures) = (Arc::clone(&self.device), Arc::clone(&self.figures));
        let interval = self.interval;
        let copying = self.spawn("copy", move || {
            let nobody = || Some(Plan::Full("nobody answers".to_owned()));
            let Some(plan) = (if asks { outbox.talk.plan() } else { nobody() }) else { return };
            // Before the first seal can come.
            points::offer(&medium);
            copy::copy(&device, &medium, &outbox, plan, &figures);
            points::keep(&medium, &outbox, interval);
        })?;
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

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        // What is sent is forgotten as it is sent: a lost epoch is never sent again.
        if let Some(outbox) = self.device.outbox() {
            outbox.release(epoch);
        }
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        if let Some(outbox) = self.device.outbox() {
            outbox.end(ErrorCode::Refused);
        }
        if why == Disengage::NotOwner && self.device.access() != Access::None {
            self.device.set_access(Access::None);
            // Beside the loop: this side's arbiter has told it, too, and a handover waits for this.
            let id = self.id.clone();
            if let Some(Medium { history, .. }) = self.device.medium().cloned() {
                let noting = self.spawn("note", move || {
                    told(&id, "the image is not noted as outdated", history.lose());
                })?;
                self.threads.push(noting);
            }
        }
        Ok(())
    }

    fn receive(&mut self, mut rx: Box<dyn RecordRx>, back: Box<dyn RecordTx>) -> Result<(), PluginError> {
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
        let description = Description::parse(&payload).map_err(SetUpError::Description)?;
        let medium = self.medium_of(description.size)?.clone();
        let answers = Arc::new(Answers::default());
        let full = points::begin(&description, &medium.history, &answers)?;
        if let Some(why) = full {
            tracing::info!(disk = self.id, why, "the whole image is copied");
        }
        let (host, ours) = (Arc::clone(&self.host), Arc::clone(&answers));
        let staging = Staging::new(medium.clone(), self.buffer, host, ours);
        let staging = Arc::clone(self.staging.insert(Arc::new(staging)));
        let reading = Arc::clone(&staging);
        let answering = Arc::clone(&answers);
        // Neither is kept: they may wait in the channel, and end with it.
        self.spawn("answer", move || answering.run(back))?;
        self.spawn("receive", move || reading.run(rx.as_mut()))?;
        let asked = description.asks;
        let syncing = self.spawn("sync", move || {
            staging.keep_synced(&medium.image, |next| {
                if asked {
                    answers.reached(next.id);
                }
            });
            answers.end();
        })?;
        self.threads.push(syncing);
        Ok(())
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        Ok(self.staging()?.commit(epoch)?)
    }

    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let Medium { image, .. } = self.device.medium().ok_or(SetUpError::NoChannel)?;
        Ok(self.staging()?.apply(epoch, image)?)
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        if self.device.access() == Access::ReadWrite {
            return Ok(());
        }
        let medium = self.device.medium().ok_or(SetUpError::NoChannel)?.clone();
        let staging = self.staging()?;
        staging.cut(epoch)?;
        staging.apply(epoch, &medium.image)?;
        staging.stop();
        self.device.set_access(Access::ReadWrite);
        let id = self.id.clone();
        let settling = self.spawn("settle", move || settle(&id, &medium))?;
        self.threads.push(settling);
        Ok(())
    }

    fn verify(&mut self, repair: bool) -> Result<(), PluginError> {
        let outbox = self.device.outbox().filter(|o| o.compares()).ok_or(SetUpError::NotCompared)?;
        let medium = self.device.medium().ok_or(SetUpError::NotCompared)?.clone();
        let mut found = lock(&self.found);
        if found.running {
            return Err(SetUpError::Comparing.into());
        }
        *found =
            DiskVerification { running: true, total: medium.image.size(), ..DiskVerification::default() };
        let (device, figures, total) =
            (Arc::clone(&self.device), Arc::clone(&self.found), medium.image.size());
        let verifying =
            self.spawn("verify", move || verify::run(&device, &medium, &outbox, repair, &figures))?;
        *found = DiskVerification { running: true, total, ..DiskVerification::default() };
        drop(found);
        self.threads.push(verifying);
        Ok(())
    }

    fn verification(&self) -> DiskVerification {
        *lock(&self.found)
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
/// metadata tell of a standby's: a host that crashes meanwhile may have lost the middle of what was applied.
fn settle(id: &str, Medium { image, history }: &Medium) {
    // The guest hears of a failure, too, with its next flush.
    let synced = told(id, "the image taken over is not on stable storage", image.sync());
    if synced {
        told(id, "the image taken over is noted as a standby's still", history.take_over());
    }
}

/// Logs an error; answers whether there was none.
fn told<E: Into<PluginError>>(id: &str, what: &str, result: Result<(), E>) -> bool {
    let failed = result.map_err(Into::into).err();
    if let Some(error) = &failed {
        tracing::error!(disk = id, error = error.chain(), "{what}");
    }
    failed.is_none()
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
        if let Some(Medium { image, history }) = self.device.medium() {
            told(&self.id, "the image is not noted as closed", history.close(image));
        }
    }
}
