//! Links with encryption.

mod common;
#[path = "common/suite.rs"]
mod suite;

const TLS: bool = true;
