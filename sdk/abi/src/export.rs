//! What [`export_plugin!`] writes into a shared object.

use crate::v1::{RootV1, RootV1_Ref, open};
pub use abi_stable::library::LibHeader;
use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;

/// The symbol under which the header of interface 1 stands.
pub const HEADER_V1: &str = "AVENTINE_PLUGIN_V1";

fn root() -> RootV1_Ref {
    RootV1 { open }.leak_into_prefix()
}

extern "C" fn erased() -> RootModuleResult {
    __call_root_module_loader(root)
}

/// What stands under [`HEADER_V1`].
pub const fn header() -> LibHeader {
    // SAFETY: `erased` answers what `root` does, and that is of the type named here.
    unsafe { LibHeader::from_constructor::<RootV1_Ref>(erased, CheckTypeLayout::Yes) }
}

/// Makes a shared object of the plugins that the named crates register; without a name, of those of the crate itself.
/// Once in a `cdylib`:
///
/// ```ignore
/// aventine_abi::export_plugin!(aventine_policy_fixed);
/// ```
///
/// It writes the descriptor, the interface and its version. What forwards the log, catches panics and adapts every
/// object is in this crate and linked in with it.
#[macro_export]
macro_rules! export_plugin {
    ($($plugin:ident),* $(,)?) => {
        // A crate that nothing refers to is left out, and its registration with it.
        $(use $plugin as _;)*

        #[cfg(not(panic = "unwind"))]
        compile_error!("a plugin must be built with panic = \"unwind\": a panic in it must not end the host");

        /// Read in the file, before it is loaded.
        #[used]
        #[unsafe(no_mangle)]
        pub static AVENTINE_PLUGIN: $crate::Descriptor = $crate::Descriptor::new(concat!(
            env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"),
        ));

        /// Interface 1.
        #[used]
        #[unsafe(no_mangle)]
        pub static AVENTINE_PLUGIN_V1: $crate::LibHeader = $crate::header();
    };
}
