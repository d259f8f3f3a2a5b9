//! Disk plugin `drbd`: a stock DRBD device that gets a write only once its epoch is committed.
//!
//! ```text
//!  guest ─► Device ─► Ahead ═══════ channel ═══════► Staging (standby, in memory)
//!             │         │ released(n)                   │ Both(n): forgotten
//!             │         ▼                               ▼ activate: Primary, then replayed
//!             └─────► /dev/drbdX ══ DRBD's own link ══► /dev/drbdX (Secondary)
//! ```
//! Invariants, each explained where it is kept:
//! - From the first epoch on, neither side's DRBD ever holds an uncommitted write (`ahead`). So a resync discards nothing
//!   that anybody was told of, and DRBD's bitmaps and roles keep their meaning.
//! - The standby keeps each epoch until DRBD has it on both sides, and replays what is left after a takeover (`standby`). A
//!   DRBD that is disconnected or resyncs costs memory, and no epoch.
//! - What a guest flushed is on stable storage of this side before the world can see what it says next (`ahead`).
//! - The resource is Primary on the side that owns the guest, and nowhere else (`lib`).
//! - A device in the middle of a replay is not started from: a note says so (`lib`).
//!
//! There is no copy by the plugin: DRBD's own resync is that, and the first epoch waits for it. The resource must be up on
//! both hosts; its connection may still be coming. A side that is StandAlone, without a disk or with an untrusted one is
//! refused, with what to do. The standby's device cannot be read before the takeover: DRBD keeps a Secondary closed.
//!
//! Keys: `resource = "r0"`, DRBD's name for it, and `buffer = "256MiB"`: memory for writes that are not on both sides, at
//! least 16 MiB and the same on both hosts. At a quarter of it the guest's writes wait; an epoch is asked for at an eighth.
//! `peer_resource` is for two sides on one kernel, where the two are resources that are each other's peer (`aventine bench disk`).
#![forbid(unsafe_code)]

mod ahead;
mod apply;
mod config;
mod device;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod overlay;
mod resource;
mod send;
mod standby;
mod state;
mod takeover;
#[cfg(test)]
mod tests;
mod upkeep;
mod wire;

use ahead::{Ahead, AheadError, End};
use apply::Applier;
use aventine_api::{
    BlockDevice, Context, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Factory, Host,
    PluginEntry, PluginError, RecordHead, RecordRx, RecordTx, Side, Upkeep, schema,
};
use aventine_disk_common::image::Image;
use aventine_disk_common::marker::Marker;
use config::Settings;
use device::{Access, Device};
use resource::{Kernel, Resource, check_connection, check_primary, check_standby};
use send::Sender;
use standby::Staging;
use state::Connection;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use wire::RecordError;

/// Sealed epochs take the memory of their writes, which has its own bound.
const DEPTH: u32 = 16;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "drbd",
        version: env!("CARGO_PKG_VERSION"),
        summary: "a stock DRBD device that gets only committed epochs",
        validate: &|text| config::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Disk(&|text, context| {
            let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let resource = Arc::new(Kernel::find(&settings.resource)?);
            Ok(Box::new(Drbd::new(&settings, resource, context)?))
        }),
        upkeep: Some(Upkeep { probe: &upkeep::probe, reclaim: &upkeep::reclaim }),
    }
}

/// The plugin does not compare the two sides.
#[derive(Debug, thiserror::Error)]
#[error(
    "DRBD compares its two sides itself: `drbdadm verify {resource}` (with `verify-alg` in the resource's `net` section)"
)]
struct VerifyError {
    resource: String,
}

/// Why a disk could not be set up.
#[derive(Debug, thiserror::Error)]
enum SetUpError {
    #[error("Resource {resource} was being taken over when this host failed: it is between two epochs. Use the other host's; \
        if that is lost, check this one and delete {}", note.display())]
    BetweenEpochs { resource: String, note: PathBuf },
    #[error("Note {} could not be read", path.display())]
    ReadNote { path: PathBuf, source: io::Error },
    #[error("Note {} could not be written", path.display())]
    WriteNote { path: PathBuf, source: io::Error },
    #[error(
        "The primary's disk is resource {theirs}, this host's is the other side of {due}. Name the same on both"
    )]
    Resource { due: String, theirs: String },
    #[error(
        "Resource {resource} has {ours} bytes here, but {theirs} on the primary. Is it another one? DRBD itself gives both \
        sides of a resource the same size"
    )]
    Size { resource: String, ours: u64, theirs: u64 },
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
            SetUpError::BetweenEpochs { .. } | SetUpError::Resource { .. } | SetUpError::Size { .. } => {
                ErrorCode::Refused
            }
            _ => ErrorCode::Internal,
        };
        PluginError::new(code, error)
    }
}

/// A disk of this plugin, on either side.
struct Drbd {
    id: String,
    buffer: usize,
    host: Arc<dyn Host>,
    resource: Arc<dyn Resource>,
    /// Its name on the other side.
    peer_resource: String,
    marker: Marker,
    device: Arc<Device>,
    /// Standby, once it receives.
    staging: Option<Arc<Staging>>,
    /// The protocol that this side's DRBD spoke before any primary changed it.
    protocol: char,
    /// Whether this side ended DRBD's connection, to take over.
    disconnected: bool,
    /// Threads that end by themselves and never wait for the channel.
    threads: Vec<JoinHandle<()>>,
}

impl Drbd {
    fn new(settings: &Settings, resource: Arc<dyn Resource>, context: Context) -> Result<Drbd, PluginError> {
        let marker = Marker::of(resource.device(), &context.config_dir);
        let state = resource.state()?;
        let device = match context.side {
            Side::Primary => {
                check_primary(&*resource, &state)?;
                let failed = |source| SetUpError::ReadNote { path: marker.path().to_owned(), source };
                if marker.read().map_err(failed)?.is_some() {
                    let (resource, note) = (resource.name().to_owned(), marker.path().to_owned());
                    return Err(SetUpError::BetweenEpochs { resource, note }.into());
                }
                resource.promote(false)?;
                let device = Device::new(Access::None);
                match Image::open(resource.device()) {
                    Ok(image) => device.open(image),
                    Err(error) => {
                        apply::give_up(&context.id, &*resource);
                        return Err(error.into());
                    }
                }
                device
            }
            Side::Standby => {
                check_standby(&*resource, &state)?;
                Device::new(Access::Standby)
            }
        };
        Ok(Drbd {
            id: context.id,
            buffer: settings.buffer,
            host: context.host,
            resource,
            peer_resource: settings.peer_resource.clone(),
            marker,
            device: Arc::new(device),
            staging: None,
            protocol: state.protocol,
            disconnected: false,
            threads: Vec::new(),
        })
    }

    fn spawn(&self, doing: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, SetUpError> {
        thread::Builder::new().name(format!("{} {doing}", self.id)).spawn(f).map_err(SetUpError::Thread)
    }

    fn staging(&self) -> Result<&Arc<Staging>, SetUpError> {
        self.staging.as_ref().ok_or(SetUpError::NoChannel)
    }

    fn session(&self) -> Result<Arc<Ahead>, SetUpError> {
        self.device.ahead().ok_or(SetUpError::NotReplicated)
    }

    /// The primary's first record.
    fn check_description(&self, payload: &[u8]) -> Result<u64, SetUpError> {
        let (size, theirs) = wire::parse_description(payload)?;
        if theirs != self.peer_resource {
            return Err(SetUpError::Resource { due: self.peer_resource.clone(), theirs });
        }
        let ours = self.resource.name().to_owned();
        // One that was never connected may not know its size.
        match self.resource.size().filter(|size| *size != 0) {
            Some(our_size) if our_size != size => {
                Err(SetUpError::Size { resource: ours, ours: our_size, theirs: size })
            }
            _ => Ok(size),
        }
    }
}

impl Disk for Drbd {
    fn depth(&self) -> u32 {
        DEPTH
    }

    fn route(&self) -> Option<String> {
        None
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }

    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        _back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError> {
        if self.device.access() != Access::ReadWrite {
            return Err(SetUpError::NotWritable.into());
        }
        if self.device.ahead().is_some_and(|a| !a.has_ended()) {
            return Err(SetUpError::Twice("replicated").into());
        }
        // Of the session before: all is applied.
        for thread in self.threads.drain(..) {
            join(&self.id, thread);
        }
        let state = self.resource.state()?;
        if std::mem::take(&mut self.disconnected) && state.connection == Connection::StandAlone {
            self.resource.connect()?;
        } else {
            check_connection(&*self.resource, &state)?;
        }
        let ahead = Arc::new(Ahead::new(self.buffer, Arc::clone(&self.host)));
        self.device.set_ahead(Arc::clone(&ahead));
        let applier = Applier::new(&self.id, &ahead, &self.device, &self.resource);
        self.threads.push(self.spawn("apply", move || applier.run())?);
        let sender = Sender::new(ahead, Arc::clone(&self.device), Arc::clone(&self.resource), tx);
        // Not kept: it may wait in the channel, and ends with it.
        self.spawn("send", move || sender.run())?;
        Ok(())
    }

    fn progress(&self) -> DiskProgress {
        let done = self.device.ahead().map_or(0, |a| a.in_sync.load(Ordering::Acquire));
        DiskProgress { done, total: self.device.size() }
    }

    fn pausing(&self) {
        if let Some(ahead) = self.device.ahead() {
            ahead.pausing();
        }
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        Ok(self.session()?.seal(epoch)?)
    }

    /// `TimedOut` until what the guest flushed in the epochs up to this one is on stable storage of this side.
    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        Ok(self.session()?.release(epoch)?)
    }

    /// `Owner`: waits until what the guest has flushed is on stable storage of this side.
    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        let ahead = self.device.ahead().filter(|a| !a.has_ended());
        match (why, ahead) {
            (Disengage::Owner, Some(ahead)) => Ok(ahead.end(End::Owner)?),
            (Disengage::Owner, None) => Ok(()),
            (Disengage::NotOwner, Some(ahead)) => {
                self.device.shut();
                // Its applying thread closes the device and makes this side Secondary.
                Ok(ahead.end(End::NotOwner)?)
            }
            (Disengage::NotOwner, None) => {
                let open = self.device.image().is_some();
                self.device.close();
                if open {
                    let (id, resource) = (self.id.clone(), Arc::clone(&self.resource));
                    self.threads.push(self.spawn("demote", move || apply::give_up(&id, &*resource))?);
                }
                Ok(())
            }
        }
    }

    fn receive(&mut self, mut rx: Box<dyn RecordRx>, _back: Box<dyn RecordTx>) -> Result<(), PluginError> {
        if self.device.access() != Access::Standby {
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
        let size = self.check_description(&payload)?;
        check_standby(&*self.resource, &self.resource.state()?)?;
        self.device.set_size(size);
        let staging = Arc::new(Staging::new(size, self.buffer, Arc::clone(&self.host)));
        self.staging = Some(Arc::clone(&staging));
        // Not kept: it may wait in the channel, and ends with it.
        self.spawn("receive", move || staging.run(rx.as_mut()))?;
        Ok(())
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        Ok(self.staging()?.commit(epoch)?)
    }

    /// Nothing to do: committed writes come by DRBD, and what it lacks is replayed by [`Disk::activate`].
    fn apply(&mut self, _epoch: Epoch) -> Result<(), PluginError> {
        Ok(())
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        if self.device.access() == Access::ReadWrite {
            return Ok(());
        }
        let staging = Arc::clone(self.staging()?);
        staging.cut(epoch)?;
        self.take_over(&staging)
    }

    fn verify(&mut self, _repair: bool) -> Result<(), PluginError> {
        let resource = self.resource.name().to_owned();
        Err(PluginError::new(ErrorCode::Unavailable, VerifyError { resource }))
    }

    fn stats(&self) -> DiskStats {
        DiskStats {
            written_bytes: self.device.written(),
            replicated_bytes: self.device.ahead().map_or(0, |a| a.sent.load(Ordering::Relaxed)),
            buffered_bytes: self.staging.as_ref().map_or(0, |s| s.bytes()),
        }
    }
}

impl Drop for Drbd {
    fn drop(&mut self) {
        if let Some(ahead) = self.device.ahead().filter(|a| !a.has_ended()) {
            // Whoever owns the guest, it does not go on with what was not committed.
            let ended: Result<(), AheadError> = ahead.end(End::NotOwner);
            debug_assert!(ended.is_ok(), "nothing is waited for");
        }
        if let Some(staging) = &self.staging {
            staging.stop();
        }
        for thread in self.threads.drain(..) {
            join(&self.id, thread);
        }
        if self.device.image().is_some() {
            self.device.close();
            apply::give_up(&self.id, &*self.resource);
        }
    }
}

fn join(id: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(disk = id, "a thread of the disk panicked");
    }
}
