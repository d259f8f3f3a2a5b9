//! A standby becomes the guest's owner: its DRBD Primary, and its device that of the last committed epoch.
//!
//! ```text
//!  peer known as Primary ─► a moment for it to give up ─► disconnect ─┐
//!  otherwise ─────────────────────────────────────────────────────────┴─► Primary ─► note ─► replay ─► writable ─► no note
//! ```
//! - DRBD may not have noticed that the other host is gone, or that one may not know yet that it has lost the guest. The
//!   arbiter has decided, so DRBD's connection is ended; [`replicate`](aventine_api::Disk::replicate) makes it again.
//! - A disk in the middle of a resync is promoted by force: what it lacks is what is replayed (`standby`).

use crate::apply::give_up;
use crate::resource::{Resource, ResourceError};
use crate::standby::Staging;
use crate::state::{Connection, Contents, Role};
use crate::{Access, Drbd, SetUpError};
use aventine_api::PluginError;
use aventine_disk_common::image::Image;
use aventine_disk_common::marker::{Mark, Marker};
use std::thread;
use std::time::{Duration, Instant};

/// How long a primary that has lost the guest has for giving up its role by itself.
const YIELD: Duration = Duration::from_millis(500);
/// How often DRBD is asked meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How often DRBD may refuse: its state may change under a request.
const TRIES: u32 = 5;

impl Drbd {
    pub(crate) fn take_over(&mut self, staging: &Staging) -> Result<(), PluginError> {
        self.promote()?;
        let image = match self.replay(staging) {
            Ok(image) => image,
            Err(error) => {
                // What is kept is kept still: it can be tried again.
                give_up(&self.id, &*self.resource);
                return Err(error);
            }
        };
        self.device.open(image);
        debug_assert_eq!(self.device.access(), Access::ReadWrite);
        if let Some(image) = self.device.image() {
            let (id, marker, resource) = (self.id.clone(), self.marker.clone(), self.resource.clone());
            let protocol = self.protocol;
            self.threads
                .push(self.spawn("settle", move || settle(&id, &image, &marker, &*resource, protocol))?);
        }
        Ok(())
    }

    fn promote(&mut self) -> Result<(), ResourceError> {
        let start = Instant::now();
        while self.resource.state()?.peer == Role::Primary {
            if start.elapsed() >= YIELD {
                self.disconnect()?;
                break;
            }
            thread::sleep(LOOK);
        }
        for left in (0..TRIES).rev() {
            let state = self.resource.state()?;
            if state.contents == Contents::None {
                return Err(ResourceError::Diskless(self.resource.name().to_owned()));
            }
            // A source that lives would go on overwriting what is replayed.
            if state.connection == Connection::Resyncing || state.peer == Role::Primary {
                self.disconnect()?;
            }
            match self.resource.promote(state.contents != Contents::UpToDate) {
                Err(error) if left == 0 => return Err(error),
                Err(_) => thread::sleep(LOOK),
                Ok(()) => break,
            }
        }
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), ResourceError> {
        self.disconnected = true;
        self.resource.disconnect()
    }

    fn replay(&self, staging: &Staging) -> Result<Image, PluginError> {
        let image = Image::open(self.resource.device())?;
        if !staging.is_empty() {
            let failed = |source| SetUpError::WriteNote { path: self.marker.path().to_owned(), source };
            self.marker.write(Mark::Following).map_err(failed)?;
        }
        staging.replay(&image)?;
        Ok(image)
    }
}

/// After taking over: the disk is whole once what was replayed is on stable storage. Until then, and if that fails, the note
/// stays.
fn settle(id: &str, image: &Image, marker: &Marker, resource: &dyn Resource, protocol: char) {
    if protocol != 'C' && protocol.is_ascii_uppercase() {
        // As configured: the other side comes back with that, and DRBD connects only those that agree.
        if let Err(error) = resource.speak(protocol) {
            let error = PluginError::from(error);
            tracing::warn!(
                disk = id,
                error = error.chain(),
                "the resource may refuse the other side: run drbdadm adjust"
            );
        }
    }
    if let Err(error) = image.sync() {
        // The guest hears of it too, with its next flush.
        let error = PluginError::from(error);
        tracing::error!(disk = id, error = error.chain(), "the disk taken over is not on stable storage");
        return;
    }
    if let Err(error) = marker.remove() {
        tracing::error!(disk = id, note = %marker.path().display(), %error, "delete this note: the disk is whole");
    }
}
