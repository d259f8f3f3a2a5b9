//! The cases. What each rule means is told in the table of [`super::rules`].

mod being;
mod epoch;
mod standby;

pub(super) use being::*;
pub(super) use epoch::*;
pub(super) use standby::*;
