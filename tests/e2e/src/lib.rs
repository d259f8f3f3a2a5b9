//! End-to-end tests with real guests: `cargo xtask test` prepares what they need and runs them.
//!
//! The library is what the guest's side of the tests consists of: see [`disk`] and [`memory`].
#![forbid(unsafe_code)]

pub mod disk;
pub mod memory;
