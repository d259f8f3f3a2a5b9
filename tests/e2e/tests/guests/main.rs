//! Real guests on two hosts made of network namespaces. Each test makes its own; `cargo xtask test` says where the
//! program and the guest are. `docs/failure-model.md` says which fault is shown by which test.

mod attach;
mod audit;
mod checks;
mod common;
mod cuts;
mod disks;
mod endings;
mod examples;
mod losses;
mod pairs;
mod pressure;
mod recording;
mod roles;
mod workloads;
