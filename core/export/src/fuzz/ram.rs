//! The device of the fuzz targets, of this front-end and of others.

use aventine_api::{BlockDevice, PluginError};
use std::sync::{Mutex, PoisonError};

/// A device that insists on what it is promised: ranges inside it, and not empty.
pub(crate) struct Ram {
    bytes: Mutex<Vec<u8>>,
    size: u64,
}

impl Ram {
    pub(crate) fn new(bytes: Vec<u8>) -> Ram {
        Ram { size: bytes.len() as u64, bytes: Mutex::new(bytes) }
    }

    fn with<T>(&self, offset: u64, len: u64, f: impl FnOnce(&mut [u8]) -> T) -> Result<T, PluginError> {
        assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= self.size), "{offset} {len}");
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(f(&mut bytes[offset as usize..][..len as usize]))
    }
}

impl BlockDevice for Ram {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        self.with(offset, buf.len() as u64, |bytes| buf.copy_from_slice(bytes))
    }

    fn write(&self, offset: u64, data: &[u8], _: bool) -> Result<(), PluginError> {
        self.with(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, _: bool) -> Result<(), PluginError> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }

    fn flush(&self) -> Result<(), PluginError> {
        Ok(())
    }
}
