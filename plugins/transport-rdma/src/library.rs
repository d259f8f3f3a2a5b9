//! The libraries, opened when the first plugin of this kind is made. Nothing of them is linked to.

use crate::ffi::{Manager, Verbs};
use libloading::Library;
use std::sync::OnceLock;

/// libibverbs and librdmacm.
pub(crate) struct Libraries {
    pub(crate) verbs: Verbs,
    pub(crate) manager: Manager,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "The library {name} cannot be used; install the packages libibverbs1, librdmacm1 and ibverbs-providers"
)]
pub(crate) struct LibraryError {
    name: &'static str,
    source: libloading::Error,
}

impl Libraries {
    /// Opens them, once for all; they are never closed.
    pub(crate) fn get() -> Result<&'static Libraries, LibraryError> {
        static LIBRARIES: OnceLock<Libraries> = OnceLock::new();
        if let Some(open) = LIBRARIES.get() {
            return Ok(open);
        }
        // SAFETY: the sonames stand for these functions and layouts.
        let verbs = unsafe { load("libibverbs.so.1", |library| Verbs::find(library)) }?;
        // SAFETY: as above.
        let manager = unsafe { load("librdmacm.so.1", |library| Manager::find(library)) }?;
        Ok(LIBRARIES.get_or_init(|| Libraries { verbs, manager }))
    }
}

/// Opens a library for as long as the process lives.
///
/// # Safety
/// Running its initialisers is what [`Library::new`] warns of.
unsafe fn load<T>(
    name: &'static str,
    find: impl FnOnce(&Library) -> Result<T, libloading::Error>,
) -> Result<T, LibraryError> {
    // SAFETY: the caller's.
    let library = unsafe { Library::new(name) }.map_err(|source| LibraryError { name, source })?;
    let found = find(&library).map_err(|source| LibraryError { name, source })?;
    std::mem::forget(library);
    Ok(found)
}
