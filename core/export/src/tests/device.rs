//! What the tests export; those of `export-vhost` use it, too.

use aventine_api::{BlockDevice, ErrorCode, PluginError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A device in memory that counts its flushes and fails where a test says so.
#[derive(Default)]
pub(crate) struct Memory {
    bytes: Mutex<Vec<u8>>,
    /// Writes without FUA since the last flush.
    pub(crate) unsynced: AtomicU64,
    pub(crate) flushes: AtomicU64,
    /// `may_unmap` of the last write_zeroes.
    pub(crate) unmapped: Mutex<Option<bool>>,
    fails: Mutex<Option<ErrorCode>>,
}

#[derive(Debug, thiserror::Error)]
#[error("The test's device fails")]
struct Fails;

impl Memory {
    pub(crate) fn new(size: usize) -> Arc<Memory> {
        Arc::new(Memory { bytes: Mutex::new(vec![0; size]), ..Memory::default() })
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    pub(crate) fn fail(&self, code: Option<ErrorCode>) {
        *self.fails.lock().unwrap() = code;
    }

    fn change(
        &self,
        offset: u64,
        len: usize,
        fua: bool,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<(), PluginError> {
        if let Some(code) = *self.fails.lock().unwrap() {
            return Err(PluginError::new(code, Fails));
        }
        let at = offset as usize;
        f(&mut self.bytes.lock().unwrap()[at..at + len]);
        if !fua {
            self.unsynced.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        self.change(offset, buf.len(), true, |bytes| buf.copy_from_slice(bytes))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        self.change(offset, data.len(), fua, |bytes| bytes.copy_from_slice(data))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        *self.unmapped.lock().unwrap() = Some(may_unmap);
        self.change(offset, len as usize, fua, |bytes| bytes.fill(0))
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.change(offset, len as usize, false, |bytes| bytes.fill(0))
    }

    fn flush(&self) -> Result<(), PluginError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.unsynced.store(0, Ordering::SeqCst);
        self.change(0, 0, true, |_| {})
    }
}
