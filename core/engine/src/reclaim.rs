//! What a crash has left of a guest on this host, once nothing runs there any more.
//!
//! A guest that this program started dies with it, and the network namespaces and taps are the operator's own: what can be
//! left are sockets, what network buffers set up in the kernel, the record of a session, and a disk's image between two
//! epochs. The next start deals with all of it; this is for those who want to know before.

use crate::arbiter::{Record, RecordError};
use crate::metrics::Metrics;
use crate::parts::{During, Maker, PluginFailure, Reports};
use aventine_api::{Premises, Side};
use aventine_config::Config;
use serde::Serialize;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::{error, fs, iter};

/// What was found, and what became of it.
#[derive(Debug, Default, Serialize)]
pub struct Reclaimed {
    /// Sockets that nobody answers on: removed.
    pub sockets: Vec<PathBuf>,
    /// What plugins had left behind on this host: `id` of the table, and what it was.
    pub leftovers: Vec<(String, String)>,
    /// The session that was open.
    pub session: Option<Settled>,
    /// Disks that a guest cannot be started from as they are: `id`, and why.
    pub disks: Vec<(String, String)>,
}

/// Who owns the guest of a session that was left open.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// This host: the arbiter has given it the guest, for good.
    Ours(String),
    /// The other host, in words.
    Theirs(String),
    /// Not known yet; why.
    Open(String),
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// The state directory could not be read, or a socket not removed.
    #[error("Cannot clear {path}")]
    Clear {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A plugin could not remove what it had left.
    #[error(transparent)]
    Plugin(#[from] PluginFailure),
}

/// Removes and settles what was left in `state_dir`, which nothing else uses meanwhile. Asks the arbiter about a session that
/// was left open: that decides it, as the next start would. Blocks for as long as the arbiter does.
pub fn reclaim(config: &Config, state_dir: &Path) -> Result<Reclaimed, ReclaimError> {
    let (reports, metrics) = (Reports::nowhere(), Metrics::default());
    let maker = Maker { config, side: Side::Primary, state_dir, reports, metrics };
    Ok(Reclaimed {
        sockets: remove_sockets(state_dir)?,
        leftovers: remove_leftovers(config)?,
        session: settle(&maker),
        disks: maker.broken_disks(),
    })
}

fn remove_leftovers(config: &Config) -> Result<Vec<(String, String)>, ReclaimError> {
    let mut removed = Vec::new();
    for (_, instance) in config.plugins() {
        let Some(upkeep) = instance.entry.upkeep else { continue };
        let premises =
            Premises { guest: config.name.clone(), id: instance.id.clone(), config_dir: config.dir.clone() };
        let found = (upkeep.reclaim)(&instance.config, &premises).during(&instance.id, "being reclaimed")?;
        removed.extend(found.into_iter().map(|what| (instance.id.clone(), what)));
    }
    Ok(removed)
}

fn remove_sockets(dir: &Path) -> Result<Vec<PathBuf>, ReclaimError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReclaimError::Clear { path, source }
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.symlink_metadata().map_err(failed(&path))?.file_type().is_socket() {
            fs::remove_file(&path).map_err(failed(&path))?;
            removed.push(path);
        }
    }
    removed.sort_unstable();
    Ok(removed)
}

fn settle(maker: &Maker<'_>) -> Option<Settled> {
    let mut record = Record::open(maker.state_dir);
    let session = match record.session() {
        Ok(session) => session?,
        Err(error) => return Some(Settled::Open(chain(&error))),
    };
    let mut arbiter = match maker.arbiter() {
        Ok(arbiter) => arbiter,
        Err(failure) => return Some(Settled::Open(chain(&failure))),
    };
    Some(match record.settle(arbiter.as_mut()) {
        Ok(()) => Settled::Ours(session.to_string()),
        Err(error @ RecordError::Taken { .. }) => Settled::Theirs(chain(&error)),
        Err(error) => Settled::Open(chain(&error)),
    })
}

fn chain(error: &dyn error::Error) -> String {
    let causes = iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
