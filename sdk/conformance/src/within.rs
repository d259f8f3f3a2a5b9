//! Calls that a broken plugin does not return from.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Waits for what another thread does; a plugin that does not return keeps the thread, not the case.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    what: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (tx, rx) = channel();
    thread::spawn(move || {
        // Nobody listens any more where the case has given up.
        let _ = tx.send(f());
    });
    rx.recv_timeout(patience).map_err(|_| format!("{what} did not return in {patience:?}"))
}
