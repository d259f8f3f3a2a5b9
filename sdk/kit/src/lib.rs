//! What plugin authors need again and again: all of a kind but what makes one plugin differ from the next.
//!
//! | kind | here | left to the plugin |
//! |---|---|---|
//! | network, in user space | [`network::Buffer`]: tap, guest's socket, threads, modes, epochs, statistics | where frames are held: a [`network::Store`] |
//! | transport, over byte streams | [`stream::Channels`]: a link's channels, time limits, abort | naming, connecting and accepting |
//!
//! ```text
//!  engine ── traits of aventine-api ──► plugin: keys, entry, what is its own
//!                      └──────────────► this crate ◄────────┘
//! ```
//! Invariants: a plugin can do without it, because nothing here is known to the engine or crosses the binary interface; and what is
//! here keeps its trait's rules whatever the plugin adds, as long as that keeps what its own documentation asks.
// Not `forbid`: a tap takes an ioctl.
#![deny(unsafe_code)]

pub mod network;
pub mod stream;
