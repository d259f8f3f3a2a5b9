//! The epoch loop: capture, staging, commit, failover.

mod control;

pub use control::{command_channel, Command, Control, Floor, Inbox, Quantiles, Status};
