//! The plugin against the real QEMU (Debian: qemu-system-x86, qemu-utils), reached as the engine reaches it.

mod attach;
#[path = "../../testing/bench.rs"]
mod bench;
mod conformance;
mod lab;
mod primary;
mod refusals;
mod standby;
mod vhost;
