//! The rules of the plugin traits as test cases, for a plugin author's own tests.
//!
//! A plugin author writes a *bench*, a small type that makes the plugin and plays its surroundings, and one line:
//!
//! ```ignore
//! aventine_conformance::network!(MyBench);
//! ```
//!
//! | kind | bench | tests |
//! |---|---|---|
//! | guest | [`guest::GuestBench`] | [`guest!`] |
//! | network | [`network::NetworkBench`] | [`network!`] |
//! | disk | [`disk::DiskBench`] | [`disk!`] |
//! | codec | [`codec::CodecBench`] | [`codec!`] |
//! | policy | [`policy::PolicyBench`] | [`policy!`] |
//! | arbiter | [`arbiter::ArbiterBench`] | [`arbiter!`] |
//! | transport | [`transport::TransportBench`] | [`transport!`] |
//! | transport that only records | [`recorder::RecorderBench`] | [`recorder!`] |
//!
//! A bench that makes its plugin through a [`form::Form`] serves the plugin linked in and loaded alike.
//!
//! Each rule of the trait's documentation becomes a test of its own, and a test that fails names the rule, what was seen, and
//! what a user would suffer from it. The cases know nothing of how a plugin works; they use the trait and the bench alone.
#![forbid(unsafe_code)]

pub mod arbiter;
pub mod codec;
pub mod disk;
pub mod form;
pub mod guest;
pub mod network;
pub mod policy;
pub mod recorder;
mod suite;
pub mod transport;
mod within;

pub use suite::Rule;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule `{rule}` is broken: {seen}\n  the rule: {meaning}")]
pub struct Violation {
    /// The rule's name, which is the case's.
    pub rule: &'static str,
    /// What the rule is and what breaking it costs.
    pub meaning: &'static str,
    /// What the case saw.
    pub seen: String,
}
