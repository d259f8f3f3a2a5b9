//! End-to-end tests with real guests: `cargo xtask test` prepares what they need and runs them.
//!
//! The library is what the guest's side of the disk test consists of; see [`workload`].
#![forbid(unsafe_code)]

pub mod workload;
