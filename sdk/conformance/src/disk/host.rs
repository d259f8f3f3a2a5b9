//! The engine's side of a disk.

use aventine_api::{Epoch, ErrorCode, Host, PluginError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a disk has reported.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// The epochs that the standby holds, in the order of the reports.
    pub(super) staged: Vec<u64>,
    /// The first failure.
    pub(super) failed: Option<(ErrorCode, String)>,
}

#[derive(Default)]
pub(super) struct Listening {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Listening {
    fn hear(&self, f: impl FnOnce(&mut Heard)) {
        f(&mut lock(&self.heard));
        self.changed.notify_all();
    }

    pub(super) fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }

    /// Waits for reports, within `patience`; answers all of them.
    pub(super) fn wait(&self, patience: Duration, is: impl Fn(&Heard) -> bool) -> Heard {
        let waited = self.changed.wait_timeout_while(lock(&self.heard), patience, |h| !is(h));
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Host for Listening {
    fn request_epoch(&self) {}

    fn staged(&self, epoch: Epoch) {
        self.hear(|h| h.staged.push(epoch.0));
    }

    fn failed(&self, error: PluginError) {
        self.hear(|h| {
            h.failed.get_or_insert_with(|| (error.code(), error.chain()));
        });
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
