//! What both files of a disk were told, in order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A step of the image or of its metadata, noted when it is done.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Of the image.
    Write {
        offset: u64,
        data: Vec<u8>,
        synced: bool,
    },
    /// A sync of the image begins, and has ended.
    Sync,
    Synced,
    /// Other metadata, which were on stable storage, have the name; and that is on stable storage.
    Replace(Vec<u8>),
    Replaced,
    /// A mark in the metadata; and all of them are on stable storage.
    Mark(usize, [u8; 8]),
    Marked,
    /// Something was told to the other side.
    Sent,
}

static LOGS: Mutex<Option<HashMap<PathBuf, Vec<Op>>>> = Mutex::new(None);

/// Notes a step in the log of the file's directory, if that has one.
pub(crate) fn note(path: &Path, op: impl FnOnce() -> Op) {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(log) = path.parent().and_then(|dir| logs.as_mut()?.get_mut(dir)) {
        log.push(op());
    }
}
