//! The lab itself, shown with real machines.

mod bench;
mod drbd;
#[path = "../../../../plugins/transport-rdma/testing/fabric.rs"]
mod fabric;
mod failover;
mod hosts;
mod inside;
mod nested;
mod reclaim;

use aventine_lab::{Lab, chain};

/// A lab that is there, or the reason why not.
#[track_caller]
fn lab(hosts: usize) -> Lab {
    Lab::start(hosts).unwrap_or_else(|error| panic!("{}", chain(&error)))
}
