//! What the plugin logs, kept for the tests of this process.

use super::LONG;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

static TEXT: Mutex<String> = Mutex::new(String::new());
static GREW: Condvar = Condvar::new();
static ALONE: Mutex<()> = Mutex::new(());

struct Keep;

impl Write for Keep {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        text().push_str(&String::from_utf8_lossy(bytes));
        GREW.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Keep {
    type Writer = Keep;

    fn make_writer(&self) -> Keep {
        Keep
    }
}

fn text() -> MutexGuard<'static, String> {
    TEXT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log, for one test at a time.
pub struct Log(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

pub fn start() -> Log {
    static ONCE: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ONCE.call_once(|| tracing_subscriber::fmt().with_writer(Keep).with_ansi(false).init());
    text().clear();
    Log(alone)
}

impl Log {
    /// Waits until the log says `what`, and forgets all of it.
    pub fn says(&self, what: &str) {
        let (mut said, _) = GREW
            .wait_timeout_while(text(), LONG, |said| !said.contains(what))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(said.contains(what), "{what:?} is not in the log:\n{said}");
        said.clear();
    }
}
