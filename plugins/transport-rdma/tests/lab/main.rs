//! The transport on soft-RoCE, in the lab.

#[path = "../../testing/bench.rs"]
mod bench;
mod conformance;
mod ends;
#[path = "../../testing/fabric.rs"]
mod fabric;
mod figures;
mod hosts;
#[path = "../../../transport-tcp/testing/keys.rs"]
mod keys;

use aventine_transport_rdma as _;
