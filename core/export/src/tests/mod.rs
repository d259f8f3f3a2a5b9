mod clients;
mod concurrent;
mod hostile;
mod raw;
mod sockets;

use crate::Export;
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A device in memory that counts its flushes and fails where a test says so.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    /// Writes without FUA since the last flush.
    unsynced: AtomicU64,
    flushes: AtomicU64,
    /// `may_unmap` of the last write_zeroes.
    unmapped: Mutex<Option<bool>>,
    fails: Mutex<Option<ErrorCode>>,
}

#[derive(Debug, thiserror::Error)]
#[error("The test's device fails")]
struct Fails;

impl Memory {
    fn new(size: usize) -> Arc<Memory> {
        Arc::new(Memory { bytes: Mutex::new(vec![0; size]), ..Memory::default() })
    }

    fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn fail(&self, code: Option<ErrorCode>) {
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

/// A memory device of `size` bytes, exported as `disk`.
fn exported(size: usize) -> (TempDir, Arc<Memory>, Export) {
    let dir = tempfile::tempdir().unwrap();
    let device = Memory::new(size);
    let export = Export::start(&dir.path().join("s"), "disk", device.clone()).unwrap();
    (dir, device, export)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}
