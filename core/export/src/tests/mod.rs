mod clients;
mod concurrent;
mod device;
mod hostile;
mod raw;
mod sockets;

use crate::Export;
use device::Memory;
use std::sync::Arc;
use tempfile::TempDir;

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
