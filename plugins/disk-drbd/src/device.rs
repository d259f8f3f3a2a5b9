//! The block device that the guest uses.

use crate::ahead::{Ahead, AheadError};
use crate::wire::Change;
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use aventine_disk_common::image::Image;
use aventine_disk_common::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Who may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A standby that has not taken over.
    Standby,
    /// The guest runs here.
    ReadWrite,
    /// The guest runs on the other side.
    None,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("DRBD keeps a Secondary's device closed: the disk can be read once this side has taken over")]
    Closed,
    #[error("The disk follows its primary: it is written only after this side has taken over")]
    Standby,
    #[error("The other side owns the guest: its disk is closed here")]
    NotOwner,
    #[error("{len} bytes at {offset} reach past the end of the disk")]
    Range { offset: u64, len: u64 },
}

impl From<AccessError> for PluginError {
    fn from(error: AccessError) -> PluginError {
        let code = match error {
            AccessError::Standby => ErrorCode::Refused,
            AccessError::Closed => ErrorCode::Unavailable,
            AccessError::NotOwner | AccessError::Range { .. } => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}

/// The device of a disk.
pub(crate) struct Device {
    access: Mutex<Access>,
    size: AtomicU64,
    /// Open while this side is Primary.
    image: RwLock<Option<Arc<Image>>>,
    /// Of the newest session.
    ahead: RwLock<Option<Arc<Ahead>>>,
    written: AtomicU64,
}

impl Device {
    pub(crate) fn new(access: Access) -> Device {
        let (size, written) = (AtomicU64::new(0), AtomicU64::new(0));
        Device {
            access: Mutex::new(access),
            size,
            image: RwLock::default(),
            ahead: RwLock::default(),
            written,
        }
    }

    /// From now on the guest's requests reach `image`.
    pub(crate) fn open(&self, image: Image) {
        self.set_size(image.size());
        *self.image.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(image));
        *lock(&self.access) = Access::ReadWrite;
    }

    /// From now on they fail. The device is closed once those under way have ended.
    pub(crate) fn close(&self) {
        self.shut();
        *self.image.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// From now on requests fail.
    pub(crate) fn shut(&self) {
        *lock(&self.access) = Access::None;
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub(crate) fn image(&self) -> Option<Arc<Image>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn ahead(&self) -> Option<Arc<Ahead>> {
        self.ahead.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on changes go to `ahead` first.
    pub(crate) fn set_ahead(&self, ahead: Arc<Ahead>) {
        *self.ahead.write().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
    }

    pub(crate) fn access(&self) -> Access {
        *lock(&self.access)
    }

    /// Bytes that the guest has written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn within(&self, offset: u64, len: u64) -> Result<(), AccessError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(AccessError::Range { offset, len }),
        }
    }

    fn writable(&self) -> Result<Arc<Image>, AccessError> {
        match self.access() {
            Access::ReadWrite => self.image().ok_or(AccessError::NotOwner),
            Access::Standby => Err(AccessError::Standby),
            Access::None => Err(AccessError::NotOwner),
        }
    }

    /// Changes a range: above the device, or by `direct` on it.
    fn change(
        &self,
        (offset, len): (u64, u64),
        data: usize,
        fua: bool,
        changes: impl FnOnce() -> Vec<Change>,
        direct: impl FnOnce(&Image) -> Result<(), PluginError>,
    ) -> Result<(), PluginError> {
        self.within(offset, len)?;
        drop(self.writable()?);
        if len == 0 {
            return Ok(());
        }
        let kept = match self.ahead() {
            Some(ahead) => ahead.write(changes, data, fua).map_err(AheadError::Broken)?,
            None => false,
        };
        if !kept {
            // Asked again: the guest may have been lost to the other side while this waited.
            let image = self.writable()?;
            direct(&image)?;
        }
        self.written.fetch_add(data as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool, fua: bool) -> Result<(), PluginError> {
        let changes = || vec![Change::zero(offset, len, unmap)];
        self.change((offset, len), 0, fua, changes, |image| {
            image.zero(offset, len, unmap)?;
            if fua { Ok(image.sync()?) } else { Ok(()) }
        })
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        let len = buf.len() as u64;
        self.within(offset, len)?;
        let image = match self.access() {
            Access::Standby => return Err(AccessError::Closed.into()),
            _ => self.writable()?,
        };
        // First: what is applied, and leaves, meanwhile is on the device by then.
        let pieces = self.ahead().map(|ahead| ahead.find(&(offset..offset + len))).unwrap_or_default();
        image.read(offset, buf)?;
        pieces.iter().for_each(|piece| piece.fill(offset, buf));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        let changes = || Change::write(offset, data).collect();
        self.change((offset, data.len() as u64), data.len(), fua, changes, |image| {
            Ok(image.write(offset, data, fua)?)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        self.zero(offset, len, may_unmap, fua)
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.zero(offset, len, true, false)
    }

    fn flush(&self) -> Result<(), PluginError> {
        let image = match self.access() {
            // Nothing was written.
            Access::Standby => return Ok(()),
            _ => self.writable()?,
        };
        let taken = match self.ahead() {
            Some(ahead) => ahead.flush().map_err(AheadError::Broken)?,
            None => false,
        };
        if taken { Ok(()) } else { Ok(image.sync()?) }
    }
}
