//! Benchmarks: what plugins cost, as a ratio to the same work without them, measured in the same run.
#![forbid(unsafe_code)]

pub mod network;
pub mod plugins;
mod wire;

pub use wire::WireError;
