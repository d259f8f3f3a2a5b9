//! From a loaded object's header to native entries.

use crate::host_log::HostLog;
use crate::v1::{LogV1_TO, RootV1_Ref, import};
use abi_stable::library::{AbiHeaderRef, LibraryError};
use abi_stable::sabi_trait::TD_Opaque;
use aventine_api::{PluginEntry, PluginError};
use std::ffi::c_void;
use std::ptr::NonNull;

/// Why a header leads to no plugins.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The library that describes layouts is not the host's.
    #[error("it was built with another abi_stable than this program ({0})")]
    Foreign(String),
    /// A type has changed since it was released.
    #[error("interface 1 has another layout in it than in this program: {cause}")]
    Layout {
        /// The innermost difference.
        cause: String,
        /// Everything that differs: a thousand lines.
        all: String,
    },
    /// It did not get as far as offering plugins.
    #[error("its start failed: {0}")]
    Start(String),
    /// A plugin could not say what it is.
    #[error("one of its plugins could not be asked what it is")]
    Entry(#[source] PluginError),
}

/// The plugins of a loaded shared object, by the header that it has under [`crate::HEADER_V1`]. What they log goes to this
/// program's `tracing`.
///
/// # Safety
/// `header` is the address of that symbol in a shared object that is never unloaded.
pub unsafe fn entries(header: NonNull<c_void>) -> Result<Vec<PluginEntry>, InterfaceError> {
    // SAFETY: `AbiHeaderRef` is a transparent reference. What stands under the symbol begins with an `AbiHeader` in every
    // version of abi_stable, and `upgrade` reads no further before it has checked that.
    let header = unsafe { std::mem::transmute::<NonNull<c_void>, AbiHeaderRef>(header) };
    let header = header.upgrade().map_err(|e| InterfaceError::Foreign(first_line(&e)))?;
    let root = header.init_root_module::<RootV1_Ref>().map_err(|e| match e {
        LibraryError::AbiInstability(all) => {
            let all = all.to_string();
            InterfaceError::Layout { cause: cause(&all), all }
        }
        other => InterfaceError::Start(first_line(&other)),
    })?;
    let entries = root.open()(LogV1_TO::from_value(HostLog::default(), TD_Opaque));
    entries.into_iter().map(|entry| import(entry).map_err(InterfaceError::Entry)).collect()
}

fn first_line(error: &LibraryError) -> String {
    error.to_string().lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

fn cause(all: &str) -> String {
    all.to_owned()
}
