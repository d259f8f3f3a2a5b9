//! The plugin registry: every plugin the program knows, by kind and name.
//!
//! ```text
//!  built in    inventory ──────────────────────────────────────────────────────────────┐
//!                                                                                      ├─► PluginEntry
//!  FILE.so     may it be trusted? ─► descriptor, in the file ─► dlopen ─► layout ─► v1 ┘
//!              file.rs                                          load.rs
//! ```
//! Invariants:
//! - The only `dlopen` of the program is in `load.rs`; it is given paths that the configuration names, no others.
//! - No code of a file runs before its owner, its mode and its descriptor were looked at.
//! - A kind and a name belong to one plugin: a second one is an error that names both origins.
//! - What is loaded stays loaded until the process ends.

mod file;
mod load;

use aventine_api::{Kind, PluginEntry};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use file::{About, FileError, Trust};
pub use load::LoadError;

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Part of the program.
    BuiltIn,
    /// A shared object.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built in"),
            Origin::File(path) => path.display().fmt(f),
        }
    }
}

/// A plugin, and where it comes from.
#[derive(Clone)]
pub struct Known {
    /// The plugin.
    pub entry: &'static PluginEntry,
    /// Where it comes from.
    pub origin: Origin,
}

/// A shared object that has been loaded.
struct Loaded {
    file: PathBuf,
    entries: Vec<&'static PluginEntry>,
}

static HIDDEN: AtomicBool = AtomicBool::new(false);
static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

fn loaded() -> MutexGuard<'static, Vec<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the plugins in the program are not known: only what was and will be loaded is.
pub fn hide_built_in() {
    HIDDEN.store(true, Ordering::Relaxed);
}

/// All plugins and their origins, sorted by kind and name (the order of registration is undefined).
pub fn known() -> Vec<Known> {
    known_with(&loaded())
}

fn known_with(loaded: &[Loaded]) -> Vec<Known> {
    let built_in = inventory::iter::<PluginEntry>.into_iter().filter(|_| !HIDDEN.load(Ordering::Relaxed));
    let built_in = built_in.map(|entry| Known { entry, origin: Origin::BuiltIn });
    let files = loaded
        .iter()
        .flat_map(|l| l.entries.iter().map(|&entry| Known { entry, origin: Origin::File(l.file.clone()) }));
    let mut known: Vec<_> = built_in.chain(files).collect();
    known.sort_by_key(|k| (k.entry.factory.kind(), k.entry.name));
    known
}

/// All plugins, sorted by kind and name.
pub fn all() -> Vec<&'static PluginEntry> {
    known().into_iter().map(|k| k.entry).collect()
}

/// The plugin of this kind and name.
pub fn find(kind: Kind, name: &str) -> Option<&'static PluginEntry> {
    all().into_iter().find(|e| e.factory.kind() == kind && e.name == name)
}

/// The names known for a kind, sorted.
pub fn names(kind: Kind) -> Vec<&'static str> {
    all().into_iter().filter(|e| e.factory.kind() == kind).map(|e| e.name).collect()
}

/// Loads the shared object `file` and adds its plugins; answers them. Again for the same file: what it has added
/// already. Blocks for the reading of the file and what its libraries do when they are loaded.
pub fn load(file: &Path, trust: Trust) -> Result<Vec<&'static PluginEntry>, LoadError> {
    let path = file::real(file)?;
    // Held to the end: two loads of one file must not both find it missing.
    let mut loaded = loaded();
    if let Some(known) = loaded.iter().find(|l| l.file == path) {
        return Ok(known.entries.clone());
    }
    let about = file::read(&path, trust)?;
    let entries = load::open(&path, &about)?;
    for (at, entry) in entries.iter().enumerate() {
        let same = |e: &PluginEntry| (e.factory.kind(), e.name) == (entry.factory.kind(), entry.name);
        let other = known_with(&loaded).into_iter().find(|k| same(k.entry)).map(|k| k.origin);
        let twice = entries[..at].iter().any(same).then(|| Origin::File(path.clone()));
        if let Some(other) = other.or(twice) {
            let (kind, name) = (entry.factory.kind(), entry.name.to_owned());
            return Err(LoadError::Duplicate { kind, name, file: path, other });
        }
    }
    let entries: Vec<&'static PluginEntry> = entries.into_iter().map(|e| &*Box::leak(Box::new(e))).collect();
    loaded.push(Loaded { file: path, entries: entries.clone() });
    Ok(entries)
}

/// Loads the shared object `file` without adding its plugins; answers its real path and them. For looking at it only: it
/// stays loaded all the same.
pub fn inspect(file: &Path, trust: Trust) -> Result<(Origin, Vec<&'static PluginEntry>), LoadError> {
    let path = file::real(file)?;
    let entries = load::open(&path, &file::read(&path, trust)?)?;
    Ok((Origin::File(path), entries.into_iter().map(|e| &*Box::leak(Box::new(e))).collect()))
}

/// What the shared object `file` says about itself, without running any of its code.
pub fn about(file: &Path, trust: Trust) -> Result<About, LoadError> {
    Ok(file::read(&file::real(file)?, trust)?)
}
