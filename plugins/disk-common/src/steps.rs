//! For tests of power loss: what an image is told, in order.

use std::path::Path;
use std::sync::OnceLock;

/// One step, told when it is done.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes, or zeroes.
    Write {
        /// Where they went.
        offset: u64,
        /// What they are.
        data: Vec<u8>,
        /// Whether they are on stable storage.
        synced: bool,
    },
    /// Bringing everything to stable storage begins.
    Sync,
    /// And has ended.
    Synced,
}

/// Called with the image's path, and with what makes the step for whoever wants it.
pub type Watch = fn(&Path, &dyn Fn() -> Step);

static WATCH: OnceLock<Watch> = OnceLock::new();

/// From now on `watch` is told every step of every image of the process. Only the first one is.
pub fn watch(watch: Watch) {
    let _ = WATCH.set(watch);
}

pub(crate) fn tell(path: &Path, step: &dyn Fn() -> Step) {
    if let Some(watch) = WATCH.get() {
        watch(path, step);
    }
}
