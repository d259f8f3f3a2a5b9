//! The two roles of a process, one after the other.
//!
//! ```text
//!             begin                                 took over
//!  protect ─────────► primary ◄──────────────────────────────────────── standby ◄───── standby
//!                       │  ▲ alone: looks for a standby itself             ▲
//!                       │  └──────────────────                             │
//!                       └── fenced, handed over, taken over while away ────┘
//! ```
//! Invariants:
//! - A guest runs in the primary's role alone, and a process that loses its guest to the other side follows it from then on.
//! - A takeover changes nothing about the guest's plugins: the same instances play the primary.
//! - The record of who may own the guest is one file for both roles.

use crate::arbiter::{Record, RecordError};
use crate::control::Inbox;
use crate::door::Door;
use crate::parts::{Maker, Parts, Reports};
use crate::primary::{self, Left, Tools};
use crate::standby::{self, Followed};
use crate::wire::ControlTx;
use crate::{End, EngineError};
use aventine_api::{Guest, Link, LinkAbort, Side};
use aventine_config::Config;
use aventine_protocol::Base;
use std::path::Path;
use std::sync::Arc;
use tracing::{info, warn};

/// What both roles work with.
pub(crate) struct Stage<'a> {
    pub(crate) config: &'a Config,
    pub(crate) state_dir: &'a Path,
    pub(crate) inbox: &'a Inbox,
}

impl Stage<'_> {
    /// Makes plugins that report to `reports`.
    pub(crate) fn maker(&self, side: Side, reports: &Reports) -> Maker<'_> {
        let (reports, metrics) = (reports.clone(), self.inbox.metrics.clone());
        Maker { config: self.config, side, state_dir: self.state_dir, reports, metrics }
    }
}

/// A guest that was taken over, as the standby leaves it to the primary.
pub(crate) struct TakenOver {
    pub(crate) parts: Parts,
    pub(crate) reports: Reports,
    pub(crate) tools: Tools,
    /// What its memory was when it began to run here.
    pub(crate) base: Base,
    /// What is left of the link to the old primary: ended.
    pub(crate) control: ControlTx,
    pub(crate) abort: Arc<dyn LinkAbort>,
    pub(crate) link: Box<dyn Link>,
}

/// The memory of a guest that was handed over: the new primary needs to send only what it has written since.
pub(crate) struct Kept {
    pub(crate) base: Base,
    /// Ended; its memory stays until it is dropped.
    pub(crate) guest: Box<dyn Guest>,
}

/// Plays the role of `side`, and what follows from it, until the guest or the operator ends it.
pub(crate) fn play(stage: &Stage<'_>, side: Side) -> Result<End, EngineError> {
    let mut record = Record::open(stage.state_dir);
    let mut door = Door::new(stage.maker(Side::Standby, &Reports::nowhere()).transport()?);
    let mut taken: Option<Box<TakenOver>> = None;
    let mut kept = None;
    let mut detail = String::new();
    let mut side = side;
    loop {
        stage.inbox.introduce(&stage.config.name, side.name());
        match side {
            Side::Primary => {
                let played = match taken.take() {
                    Some(guest) => primary::go_on(stage, &mut record, *guest),
                    None => primary::begin(stage, &mut record),
                };
                let left = match played {
                    Err(EngineError::Record(taken @ RecordError::Taken { .. })) => {
                        Left::Lost(taken.to_string())
                    }
                    other => other?,
                };
                match left {
                    Left::Ended(end) => return Ok(end),
                    Left::Lost(why) => {
                        warn!(why, "this host is the standby from now on");
                        detail = why;
                    }
                    Left::HandedOver(memory) => {
                        info!("the guest was handed over; this host is the standby from now on");
                        (kept, detail) = (Some(memory), String::new());
                    }
                }
                side = Side::Standby;
            }
            Side::Standby => match standby::follow(stage, &mut record, &mut door, kept.take(), &detail)? {
                Followed::Stopped => return Ok(End::Stopped),
                Followed::TookOver(guest) => {
                    door.refuse();
                    taken = Some(guest);
                    side = Side::Primary;
                }
            },
        }
    }
}
