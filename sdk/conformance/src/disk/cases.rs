//! The cases. What each rule means is told in the table of [`super::rules`].

mod channel;
mod copy;
mod device;
mod epochs;
mod takeover;

pub(super) use super::crash::a_crash_exposes_nothing;
pub(super) use super::model::a_model_agrees;
pub(super) use channel::*;
pub(super) use copy::*;
pub(super) use device::*;
pub(super) use epochs::*;
pub(super) use takeover::*;
