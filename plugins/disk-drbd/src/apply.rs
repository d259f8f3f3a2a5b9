//! The primary's applying thread: waits until DRBD is in sync, then writes released epochs to its device, and finds out when
//! they are on both sides.
//!
//! The resource speaks protocol C meanwhile, whatever is configured: only then does a write that has returned tell that the
//! other side has it. The guest's writes do not wait for that.

use crate::ahead::{Ahead, Due, End, Layer, Step};
use crate::device::Device;
use crate::resource::{Resource, ResourceError, check_connection};
use crate::state::{Connection, Contents};
use crate::wire::Arrived;
use aventine_api::{ErrorCode, Metric, PluginError};
use aventine_disk_common::image::{Image, ImageError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// How often DRBD is asked while there is nothing else to do.
const LOOK: Duration = Duration::from_millis(100);
/// How long a connection may be missing before replication begins.
const CONNECT: Duration = Duration::from_secs(60);
/// How long the device may stay in use after it was closed here.
const CLOSE: Duration = Duration::from_secs(10);

/// Why replication ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("A committed epoch could not be written to DRBD's device")]
    Write(#[source] ImageError),
    #[error(
        "Resource {resource} is {word}, and {bytes} bytes of writes are not on both sides: that is as much as the disk's \
        `buffer` allows. Connect it; or raise `buffer` on both hosts"
    )]
    Behind { resource: String, word: String, bytes: usize },
}

impl From<ApplyError> for PluginError {
    fn from(error: ApplyError) -> PluginError {
        let code = match &error {
            ApplyError::Write(source) => PluginError::from(source.clone()).code(),
            ApplyError::Behind { .. } => ErrorCode::Limit,
        };
        PluginError::new(code, error)
    }
}

pub(crate) struct Applier {
    pub(crate) id: String,
    pub(crate) ahead: Arc<Ahead>,
    pub(crate) device: Arc<Device>,
    pub(crate) resource: Arc<dyn Resource>,
    unconfirmed: Arc<dyn Metric>,
    /// Whether DRBD was not in sync when it was last asked.
    behind: bool,
}

impl Applier {
    pub(crate) fn new(
        id: &str,
        ahead: &Arc<Ahead>,
        device: &Arc<Device>,
        resource: &Arc<dyn Resource>,
    ) -> Applier {
        let help = "bytes written to DRBD that may not be on both sides";
        Applier {
            id: id.to_owned(),
            ahead: Arc::clone(ahead),
            device: Arc::clone(device),
            resource: Arc::clone(resource),
            unconfirmed: ahead.host.metric("unconfirmed_bytes", help),
            behind: false,
        }
    }

    /// Until replication has ended and all is applied that will be.
    pub(crate) fn run(mut self) {
        let configured = match self.prepare() {
            Ok(letter) => letter,
            Err(error) => {
                self.ahead.fail(error);
                None
            }
        };
        let end = self.apply();
        if let Some(letter) = configured
            && let Err(error) = self.resource.speak(letter)
        {
            let error = PluginError::from(error);
            tracing::warn!(disk = self.id, error = error.chain(), "the resource speaks protocol C still");
        }
        if end == End::NotOwner {
            self.device.close();
            give_up(&self.id, &*self.resource);
        }
    }

    /// Waits until DRBD has the disk on both sides. Answers the protocol that is configured, if it is another one than C.
    fn prepare(&mut self) -> Result<Option<char>, PluginError> {
        let (start, mut said) = (Instant::now(), String::new());
        let Some(image) = self.device.image() else { return Ok(None) };
        let mut configured = None;
        while self.ahead.ends_as().is_none() {
            let state = self.resource.state()?;
            check_connection(&*self.resource, &state)?;
            let name = || self.resource.name().to_owned();
            if state.connection == Connection::Connecting && start.elapsed() > CONNECT {
                return Err(ResourceError::NotConnected { resource: name(), word: state.word }.into());
            }
            if state.connection == Connection::Connected && state.peer_contents == Contents::None {
                return Err(ResourceError::PeerDiskless(name()).into());
            }
            if state.on_both() && state.protocol != 'C' {
                if configured.is_some() {
                    return Err(ResourceError::Protocol { resource: name(), letter: state.protocol }.into());
                }
                self.resource.speak('C')?;
                configured = Some(state.protocol);
                continue;
            }
            if state.on_both() {
                // Most of what is cached, before the first epoch has to wait for it.
                image.sync()?;
                if self.resource.state()?.on_both() {
                    self.ahead.ready(image.size());
                    return Ok(configured);
                }
            }
            if state.connection == Connection::Resyncing {
                let least = image.size().saturating_sub(1).min(image.size().saturating_sub(state.differ));
                self.ahead.in_sync.store(least, Ordering::Release);
            }
            if state.word != said {
                tracing::info!(
                    disk = self.id,
                    state = state.word,
                    "waiting until DRBD has the disk on both sides"
                );
                said = state.word;
            }
            self.ahead.due(LOOK);
        }
        Ok(configured)
    }

    fn apply(&mut self) -> End {
        loop {
            match self.ahead.due(LOOK) {
                Due::Layers(layers) => {
                    if let Err(error) = self.write(&layers) {
                        self.ahead.fail(ApplyError::Write(error.clone()).into());
                        self.ahead.settled(Some(error));
                        return self.ahead.ended();
                    }
                    self.look();
                }
                Due::Look => self.look(),
                Due::End(end) => {
                    let failed = match (end, self.device.image()) {
                        // A flush just before the first seal has no barrier to make it good any more.
                        (End::Owner, Some(image)) => image.sync().err(),
                        _ => None,
                    };
                    self.ahead.settled(failed);
                    return end;
                }
            }
        }
    }

    fn write(&self, layers: &[Arc<Layer>]) -> Result<(), ImageError> {
        let Some(image) = self.device.image() else { return Ok(()) };
        for layer in layers {
            for step in &layer.steps {
                self.step(step, &image)?;
            }
        }
        image.sync()?;
        if let Some(last) = layers.last() {
            self.ahead.durable(last.epoch);
        }
        Ok(())
    }

    fn step(&self, step: &Step, image: &Image) -> Result<(), ImageError> {
        let Step::Change(change) = step else { return image.sync() };
        carry_out(&change.arrived(), image)?;
        self.ahead.written(change);
        Ok(())
    }

    /// Whether what is on the device is on both sides.
    fn look(&mut self) {
        if self.ahead.ends_as().is_some() {
            return;
        }
        let state = match self.resource.state() {
            Ok(state) => state,
            Err(error) => return self.ahead.fail(error.into()),
        };
        let resource = self.resource.name();
        if state.on_both() {
            self.ahead.confirm();
            self.unconfirmed.set(0);
            if std::mem::take(&mut self.behind) {
                tracing::info!(disk = self.id, resource, "DRBD has the disk on both sides again");
            }
            return;
        }
        let (bytes, full) = self.ahead.unconfirmed();
        self.unconfirmed.set(bytes as u64);
        if !std::mem::replace(&mut self.behind, true) {
            let why = check_connection(&*self.resource, &state).err().map(|e| e.to_string());
            let (state, why) = (&state.word, why.unwrap_or_default());
            tracing::warn!(
                disk = self.id,
                resource,
                state,
                why,
                "DRBD is behind; the standby keeps what it lacks"
            );
        }
        if full {
            let (resource, word) = (resource.to_owned(), state.word);
            self.ahead.fail(ApplyError::Behind { resource, word, bytes }.into());
        }
    }
}

/// Makes one change of the image.
pub(crate) fn carry_out(change: &Arrived<'_>, image: &Image) -> Result<(), ImageError> {
    match *change {
        Arrived::Write { offset, data } => image.write(offset, data, false),
        Arrived::Zero { offset, len, unmap } => image.zero(offset, len, unmap),
    }
}

/// Makes this side Secondary, once nobody has the device open any more.
pub(crate) fn give_up(id: &str, resource: &dyn Resource) {
    let start = Instant::now();
    while let Err(error) = resource.demote() {
        if start.elapsed() > CLOSE {
            let error = PluginError::from(error);
            tracing::error!(
                disk = id,
                error = error.chain(),
                "the resource stays Primary: make it Secondary"
            );
            return;
        }
        thread::sleep(LOOK);
    }
}
