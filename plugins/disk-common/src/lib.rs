//! What disk plugins have in common: the image or device under a disk, the note beside it, changes as they are sent, and the
//! sum by which a barrier checks its epoch.
#![forbid(unsafe_code)]

pub mod change;
mod direct;
mod error;
pub mod image;
pub mod marker;
pub mod pool;
#[doc(hidden)]
pub mod steps;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of an earlier holder.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits while `waits` says so.
pub fn wait_while<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    waits: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    condition.wait_while(guard, waits).unwrap_or_else(PoisonError::into_inner)
}

/// Where what is to be remembered of `image` is kept: beside it, or in `config_dir` for a device, because `/dev` does not
/// outlive a reboot.
pub fn beside(image: &Path, config_dir: &Path) -> PathBuf {
    let mut path = OsString::from(match image.strip_prefix("/dev") {
        Ok(device) => {
            let parts: Vec<_> = device.iter().map(|part| part.to_string_lossy()).collect();
            config_dir.join(format!("dev-{}", parts.join("-")))
        }
        Err(_) => image.to_owned(),
    });
    path.push(".aventine");
    path.into()
}
