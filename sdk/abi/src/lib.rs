//! The binary interface of Aventine's plugins as shared objects.
//!
//! A plugin is written against [`aventine_api`] and knows nothing of this crate, but for one line that makes a `cdylib`
//! of it:
//!
//! ```ignore
//! aventine_abi::export_plugin!(my_plugin_crate);
//! ```
//!
//! ```text
//!  engine ──► native trait ─┐                                       ┌──► native trait ──► plugin
//!                           │ Imported<GuestV1_TO>    Exported<dyn Guest>
//!                           └──────────── the boundary: v1 ─────────┘
//! ```
//! Invariants:
//! - [`v1`] never changes once it is released (a test pins its layout); a `v2` is added beside it.
//! - No panic crosses the boundary: what one side calls on the other is an [`v1`] object, and each of its methods
//!   catches. A plugin's object that panicked is dead: it answers an error from then on, and the plugin's code is not
//!   called any more, but for its `disengage` and its `Drop`.
//! - What can be read without running any code of the plugin is the [`Descriptor`] in its file.
//! - Errors and answers are values without pointers; slices are lent for the time of a call.
//!
//! `docs/abi.md` tells what is promised.

mod descriptor;
mod export;
mod host_log;
mod load;
pub mod v1;

pub use descriptor::{ABI, Descriptor, MAGIC};
pub use export::HEADER_V1;
#[doc(hidden)]
pub use export::{LibHeader, header};
pub use load::{InterfaceError, entries};
pub use v1::adapted;
