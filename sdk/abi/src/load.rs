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

/// The last difference, which is the cause of those before it: `abi_stable` writes
/// `Layout of found type: … type:NAME … Error:WHAT Expected: … Found: …`.
fn cause(all: &str) -> String {
    let found = || {
        let (before, last) = all.rsplit_once("\nError:")?;
        let (what, rest) = last.split_once("\nExpected:")?;
        let (expected, found) = rest.split_once("\nFound:")?;
        let inside = before.rsplit_once("Layout of found type:").map_or(before, |(_, inside)| inside);
        let name = inside.lines().find_map(|line| line.trim().strip_prefix("type:"))?;
        let (expected, found) = (short(expected), short(found.split("\n\n").next()?));
        Some(format!("{name}: {what}: this program has {expected}, the plugin {found}"))
    };
    found().unwrap_or_else(|| short(all.lines().last().unwrap_or_default()))
}

/// In one line, not too long.
fn short(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi_stable::StableAbi;
    use abi_stable::abi_stability::abi_checking::check_layout_compatibility;

    mod released {
        #[derive(abi_stable::StableAbi)]
        #[repr(C)]
        pub(super) struct Stats {
            held: u64,
            dropped: u64,
        }
    }

    mod changed {
        #[derive(abi_stable::StableAbi)]
        #[repr(C)]
        pub(super) struct Stats {
            held: u64,
            lost: u64,
        }
    }

    #[test]
    fn of_a_layout_error_the_cause_is_told() {
        let (ours, theirs) = (<released::Stats as StableAbi>::LAYOUT, <changed::Stats as StableAbi>::LAYOUT);
        let all = check_layout_compatibility(ours, theirs).unwrap_err().to_string();
        let told = cause(&all);
        assert!(told.starts_with("Stats: unexpected field: this program has"), "{told}");
        assert!(told.contains("dropped") && told.contains("lost"), "{told}");
        assert_eq!(cause("something else\nat its end"), "at its end");
    }
}
