//! The only `dlopen`.

use crate::Origin;
use crate::file::{About, FileError};
use aventine_abi::{HEADER_V1, InterfaceError};
use aventine_api::{Kind, PluginEntry};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use tracing::debug;

/// Why a shared object gives no plugins.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not even tried.
    #[error(transparent)]
    File(#[from] FileError),
    /// A library that it was linked with is not there.
    #[error("{} needs the library {library}, which is not installed here", file.display())]
    Library {
        /// The file.
        file: PathBuf,
        /// The library.
        library: String,
    },
    /// The system's loader refuses it for another reason.
    #[error("{} cannot be loaded: {why}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// The loader's words.
        why: String,
    },
    /// It has a descriptor, but not the interface that the descriptor promises.
    #[error("{} has no {HEADER_V1}: it was not written by `export_plugin!`", .0.display())]
    NoHeader(PathBuf),
    /// The two sides do not fit together.
    #[error("{} ({build}) does not fit this program; build it anew with the sdk of this version", file.display())]
    Interface {
        /// The file.
        file: PathBuf,
        /// What it was built from.
        build: String,
        /// What does not fit.
        source: InterfaceError,
    },
    /// It offers nothing.
    #[error("{} has no plugin in it: none is registered in the crates that `export_plugin!` names", .0.display())]
    Empty(PathBuf),
    /// Two plugins of one name.
    #[error("the {kind} plugin `{name}` of {} is there already: {other}", file.display())]
    Duplicate {
        /// Their kind.
        kind: Kind,
        /// Their name.
        name: String,
        /// Where the second is.
        file: PathBuf,
        /// Where the first comes from.
        other: Origin,
    },
}

impl LoadError {
    /// The whole chain in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

/// Loads `file`, of which `about` was read, for as long as the process lives.
pub(crate) fn open(file: &Path, about: &About) -> Result<Vec<PluginEntry>, LoadError> {
    // SAFETY: running the initialisers of the file is what the configuration asks for by naming it.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| refused(file, &e))?;
    // SAFETY: the symbol is only taken as an address.
    let header = unsafe { library.get::<*mut c_void>(HEADER_V1) }.map(|symbol| symbol.as_raw_ptr());
    // From here on its code may have left anything anywhere: it is never unloaded.
    std::mem::forget(library);
    let header = header.ok().and_then(NonNull::new).ok_or_else(|| LoadError::NoHeader(file.to_owned()))?;
    // SAFETY: it is the address of that symbol, in an object that stays.
    let entries = unsafe { aventine_abi::entries(header) }.map_err(|source| {
        if let InterfaceError::Layout { all, .. } = &source {
            debug!(file = %file.display(), "the layouts differ:\n{all}");
        }
        LoadError::Interface { file: file.to_owned(), build: about.build.clone(), source }
    })?;
    if entries.is_empty() {
        return Err(LoadError::Empty(file.to_owned()));
    }
    Ok(entries)
}

/// The loader names what it could not open, and that need not be the file itself.
fn refused(file: &Path, error: &libloading::Error) -> LoadError {
    let why = match error {
        libloading::Error::DlOpen { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    let absent = why.split_once(": cannot open shared object file: No such file");
    match absent.map(|(library, _)| library).filter(|library| Path::new(library) != file) {
        Some(library) => LoadError::Library { file: file.to_owned(), library: library.to_owned() },
        None => LoadError::Open { file: file.to_owned(), why },
    }
}
