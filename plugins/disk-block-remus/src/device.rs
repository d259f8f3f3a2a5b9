//! The block device that the guest uses.

use crate::history::History;
use crate::outbox::{Origin, Outbox};
use crate::ranges::Ranges;
use crate::wire::{Change, MAX_CHANGE};
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use aventine_disk_common::image::{Image, ImageError};
use aventine_disk_common::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// Who may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A standby that has not taken over.
    ReadOnly,
    /// The guest runs here.
    ReadWrite,
    /// The guest runs on the other side.
    None,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("The primary has not described the disk yet")]
    NoImage,
    #[error("The disk follows its primary: it is written only after this side has taken over")]
    ReadOnly,
    #[error("The other side owns the guest: its disk is closed here")]
    NotOwner,
    #[error("{len} bytes at {offset} reach past the end of the disk")]
    Range { offset: u64, len: u64 },
}

impl From<AccessError> for PluginError {
    fn from(error: AccessError) -> PluginError {
        let code = match error {
            AccessError::ReadOnly => ErrorCode::Refused,
            AccessError::NoImage => ErrorCode::Unavailable,
            AccessError::NotOwner | AccessError::Range { .. } => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}

/// What the engine hears when a write fails here.
#[derive(Debug, thiserror::Error)]
#[error(
    "The guest was told that a change of its disk failed; the standby's disk may differ from this one there"
)]
struct LocalChange(#[source] ImageError);

/// An image and its history.
#[derive(Clone)]
pub(crate) struct Medium {
    pub(crate) image: Arc<Image>,
    pub(crate) history: Arc<History>,
}

/// The device of a disk.
pub(crate) struct Device {
    access: Mutex<Access>,
    medium: OnceLock<Medium>,
    /// Of the newest session.
    outbox: RwLock<Option<Arc<Outbox>>>,
    /// Held by whoever changes the image or copies it.
    pub(crate) ranges: Ranges,
    written: AtomicU64,
}

impl Device {
    pub(crate) fn new(access: Access, medium: Option<Medium>) -> Device {
        Device {
            access: Mutex::new(access),
            medium: medium.map(OnceLock::from).unwrap_or_default(),
            outbox: RwLock::default(),
            ranges: Ranges::default(),
            written: AtomicU64::new(0),
        }
    }

    /// `None`: this standby has no image yet.
    pub(crate) fn medium(&self) -> Option<&Medium> {
        self.medium.get()
    }

    /// Gives a standby the image that it made; `false`: it has one.
    pub(crate) fn set_medium(&self, medium: Medium) -> bool {
        self.medium.set(medium).is_ok()
    }

    pub(crate) fn outbox(&self) -> Option<Arc<Outbox>> {
        self.outbox.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on changes go to `outbox` as well. `false`: they still go to another one.
    pub(crate) fn set_outbox(&self, outbox: Arc<Outbox>) -> bool {
        let mut current = self.outbox.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|o| !o.has_ended()) {
            return false;
        }
        *current = Some(outbox);
        true
    }

    pub(crate) fn access(&self) -> Access {
        *lock(&self.access)
    }

    pub(crate) fn set_access(&self, access: Access) {
        *lock(&self.access) = access;
    }

    /// Bytes that the guest has written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn writable(&self) -> Result<(), AccessError> {
        match self.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(AccessError::ReadOnly),
            Access::None => Err(AccessError::NotOwner),
        }
    }

    fn within(&self, offset: u64, len: u64) -> Result<&Medium, AccessError> {
        let medium = self.medium.get().ok_or(AccessError::NoImage)?;
        match offset.checked_add(len) {
            Some(end) if end <= medium.image.size() => Ok(medium),
            _ => Err(AccessError::Range { offset, len }),
        }
    }

    /// Changes a range here, and has the standby do the same. `local` makes the change, on stable storage where it
    /// is told so; `changes` are what the standby does, `pieces` of them with `data` bytes in all.
    fn change(
        &self,
        (offset, len): (u64, u64),
        fua: bool,
        (pieces, data): (usize, usize),
        changes: impl FnOnce(&Outbox) -> Vec<Change>,
        local: impl FnOnce(&Image, bool) -> Result<(), ImageError>,
    ) -> Result<(), PluginError> {
        let Medium { image, history } = self.within(offset, len)?;
        self.writable()?;
        if len == 0 {
            return Ok(());
        }
        let _held = self.ranges.lock(offset, len);
        // Looked up under the lock: the initial copy takes the same lock, so a change that finds no outbox is made
        // before its range is copied.
        let outbox = self.outbox();
        let cost = Outbox::cost(pieces, data);
        let replicated = outbox.as_ref().filter(|o| o.reserve(cost, Origin::Guest));
        // Asked again: the guest may have been lost to the other side while this waited.
        self.writable()?;
        let sync = fua && !replicated.is_some_and(|o| o.takes_over_flush());
        if let Err(error) = history.touch(offset, len) {
            if let Some(outbox) = replicated {
                outbox.push(Vec::new(), cost, 0);
            }
            return Err(error.into());
        }
        if let Err(error) = local(image, sync) {
            if let Some(outbox) = replicated {
                let code = PluginError::from(error.clone()).code();
                outbox.fail(PluginError::new(code, LocalChange(error.clone())));
            }
            return Err(error.into());
        }
        if let Some(outbox) = replicated {
            outbox.push_guest(changes(outbox), cost, (offset, len));
        }
        self.written.fetch_add(data as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool, fua: bool) -> Result<(), PluginError> {
        let changes = |_: &Outbox| vec![Change::zero(offset, len, unmap)];
        self.change((offset, len), fua, (1, 0), changes, |image, sync| {
            image.zero(offset, len, unmap)?;
            if sync { image.sync() } else { Ok(()) }
        })
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.medium.get().map_or(0, |m| m.image.size())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        let Medium { image, .. } = self.within(offset, buf.len() as u64)?;
        if self.access() == Access::None {
            return Err(AccessError::NotOwner.into());
        }
        Ok(image.read(offset, buf)?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        let size = (data.len().div_ceil(MAX_CHANGE), data.len());
        let changes = |outbox: &Outbox| Change::write_by(offset, data, |d| outbox.pool.copy(d)).collect();
        self.change((offset, data.len() as u64), fua, size, changes, |image, sync| {
            image.write(offset, data, sync)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        self.zero(offset, len, may_unmap, fua)
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.zero(offset, len, true, false)
    }

    fn flush(&self) -> Result<(), PluginError> {
        let Medium { image, .. } = self.within(0, 0)?;
        if self.access() == Access::None {
            return Err(AccessError::NotOwner.into());
        }
        if self.outbox().is_some_and(|o| o.takes_over_flush()) {
            return Ok(());
        }
        Ok(image.sync()?)
    }
}
