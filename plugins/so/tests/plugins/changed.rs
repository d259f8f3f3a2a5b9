//! A shared object whose interface 1 is not the released one: its entry point takes another argument.

// What `abi_stable` writes for a trait has no documentation of its own.
#![allow(missing_docs, non_camel_case_types, non_local_definitions, unused_qualifications, unreachable_pub)]

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::RVec;

#[derive(StableAbi)]
#[repr(C)]
#[sabi(kind(Prefix(prefix_ref = RootV1_Ref)))]
pub struct RootV1 {
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(log: u64) -> RVec<u8>,
}

impl RootModule for RootV1_Ref {
    abi_stable::declare_root_module_statics! {RootV1_Ref}
    const BASE_NAME: &'static str = "aventine_plugin";
    const NAME: &'static str = "aventine_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

extern "C" fn open(_: u64) -> RVec<u8> {
    RVec::new()
}

extern "C" fn root() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(|| RootV1 { open }.leak_into_prefix())
}

/// As a released plugin has it.
#[unsafe(no_mangle)]
pub static AVENTINE_PLUGIN: aventine_abi::Descriptor = aventine_abi::Descriptor::new("changed 0.1.0");

/// Of another layout.
// SAFETY: `root` makes a `RootV1`.
#[unsafe(no_mangle)]
pub static AVENTINE_PLUGIN_V1: LibHeader =
    unsafe { LibHeader::from_constructor::<RootV1_Ref>(root, CheckTypeLayout::Yes) };
