//! `aventine replay --standby`: a standby takes what was recorded of a primary.

use crate::exit::Exit;
use crate::output::{print, tell, tell_error};
use crate::progress::{mib, millis};
use crate::run::load;
use aventine_engine::{Fed, FeedError, Quantiles, Recorded};
use aventine_replay::{SourceError, Trace};
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Why a standby was not fed.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("Cannot make a directory for the transport")]
    Directory(#[source] io::Error),
    #[error("Cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// What is printed.
#[derive(Serialize)]
struct Row {
    epochs: u64,
    bytes: u64,
    seconds: f64,
    commit_us: Quantiles,
}

/// Sends `trace` to the standby of the configuration at `config`.
pub(crate) fn feed(trace: &Path, config: &Path, json: bool) -> Exit {
    let config = match load(config) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let fed = || -> Result<(Fed, bool), ReplayError> {
        let trace = Trace::open(trace)?;
        let dir = tempfile::tempdir().map_err(ReplayError::Directory)?;
        let stop = stop_when_asked()?;
        Ok((aventine_engine::feed(&config, dir.path(), &trace, &stop)?, trace.end().is_some()))
    };
    match fed() {
        Ok((Fed { epochs, bytes, time, commit_us }, ended)) => {
            let row = Row { epochs, bytes, seconds: time.as_secs_f64(), commit_us };
            print(if json {
                serde_json::to_string(&row).unwrap_or_else(|e| e.to_string())
            } else {
                text(&row)
            });
            if !ended {
                tell("The recording breaks off, and so did the link: the standby has lost its primary.");
            }
            Exit::Done
        }
        Err(error) => {
            tell_error(&error);
            Exit::Error
        }
    }
}

/// Set by the first SIGINT or SIGTERM: neither must look to the standby like the loss of its primary.
fn stop_when_asked() -> Result<Arc<AtomicBool>, ReplayError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ReplayError::Signals)?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        let on = |kind| signal(kind).map_err(ReplayError::Signals);
        (on(SignalKind::interrupt())?, on(SignalKind::terminate())?)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        asked.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

fn text(row: &Row) -> String {
    let Row { epochs, bytes, seconds, commit_us } = row;
    format!(
        "{epochs} epochs, {:.1} MiB, in {seconds:.2} s\ncommit: median {}, 99 % {}, longest {}",
        mib(*bytes),
        millis(commit_us.p50),
        millis(commit_us.p99),
        millis(commit_us.max)
    )
}
