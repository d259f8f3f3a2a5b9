//! End-to-end tests with real guests: `cargo xtask test` prepares what they need and runs them.
//!
//! The library is what such tests consist of, wherever they are run from:
//!
//! | in the guest | outside |
//! |---|---|
//! | [`disk`], [`exercise`], [`memory`] | [`guest`], which asks for them |
//! | [`database`], a `sqlite3` program | [`ledger`], the client that knows every acknowledged transaction |
//! | the file system on the disk | [`volume`], which makes it and looks at it when nobody runs on it |
#![deny(unsafe_code)]

pub mod database;
pub mod disk;
pub mod exercise;
pub mod guest;
pub mod ledger;
pub mod memory;
mod random;
#[allow(unsafe_code)]
mod raw;
pub mod volume;

/// Where the guest's file system is, once it is mounted.
pub const MOUNT: &str = "/disk";
/// Libraries of the programs that it brings.
pub const LIBRARIES: &str = "/disk/lib";
