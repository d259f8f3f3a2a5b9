//! What can happen to a pair of hosts, and how it is made good.

use crate::{LIMIT, SoakError};
use aventine_demo::lab::{Lab, Pair, TAKEOVER};
use aventine_demo::network::Cut;
use clap::ValueEnum;
use rand::RngExt;
use rand::rngs::StdRng;
use std::thread;
use std::time::{Duration, Instant};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The primary's host is lost: its controller and its QEMU, at the same moment.
    Kill,
    /// The primary's controller is killed alone.
    Controller,
    /// The primary's QEMU is killed alone.
    Guest,
    /// The standby's host is lost.
    Standby,
    /// The standby's waiting QEMU is killed alone.
    StandbyGuest,
    /// The link is cut, one way or both.
    Cut,
    /// The link is cut while neither host reaches the arbiter, for a while.
    Arbiter,
    /// The guest is handed over.
    Handover,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 8] = [
        Fault::Kill,
        Fault::Controller,
        Fault::Guest,
        Fault::Standby,
        Fault::StandbyGuest,
        Fault::Cut,
        Fault::Arbiter,
        Fault::Handover,
    ];

    /// Does it, and waits until one side owns the guest, which is the pair's primary then. Answers whether that is
    /// another host than before.
    pub(crate) fn strike(self, lab: &Lab, pair: &mut Pair, random: &mut StdRng) -> Result<bool, SoakError> {
        match self {
            Fault::Kill => pair.primary.kill(random.random())?,
            Fault::Controller => pair.primary.kill_controller()?,
            Fault::Guest => pair.primary.kill_guest()?,
            Fault::Standby => pair.standby.kill(random.random())?,
            Fault::StandbyGuest => pair.standby.kill_guest()?,
            Fault::Cut => {
                let cut = [Cut::Both, Cut::FromA, Cut::FromB][random.random_range(0..3)];
                lab.network().cut(cut)?;
                let moved = settle(pair);
                lab.network().heal(cut)?;
                return moved;
            }
            Fault::Arbiter => {
                lab.block_arbiter(pair.site)?;
                lab.network().cut(Cut::Both)?;
                for node in [&mut pair.primary, &mut pair.standby] {
                    node.wait_for("asking the arbiter", LIMIT, |status| status.state == "resolving")?;
                }
                thread::sleep(Duration::from_millis(random.random_range(0..1000)));
                lab.unblock_arbiter(pair.site)?;
                let moved = settle(pair);
                lab.network().heal(Cut::Both)?;
                return moved;
            }
            Fault::Handover => {
                pair.hand_over()?;
                return Ok(true);
            }
        }
        match self {
            Fault::Standby | Fault::StandbyGuest => {
                pair.primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected")?;
                Ok(false)
            }
            _ => {
                pair.standby.wait_for("the takeover", TAKEOVER, |status| status.side == "primary")?;
                pair.change_roles();
                Ok(true)
            }
        }
    }

    /// Starts what is gone for good.
    pub(crate) fn repair(self, lab: &Lab, pair: &mut Pair) -> Result<(), SoakError> {
        match self {
            Fault::Kill | Fault::Controller | Fault::Standby => Ok(lab.restart_standby(pair)?),
            // They come back by themselves.
            Fault::Guest | Fault::StandbyGuest | Fault::Cut | Fault::Arbiter | Fault::Handover => Ok(()),
        }
    }
}

/// Waits until exactly one side owns the guest after a cut.
fn settle(pair: &mut Pair) -> Result<bool, SoakError> {
    let end = Instant::now() + LIMIT;
    loop {
        let [a, b] = [&pair.primary, &pair.standby].map(|node| node.status());
        let (a, b) = (a?, b?);
        match [(&a.side[..], &a.state[..]), (&b.side[..], &b.state[..])] {
            [("primary", "unprotected"), ("primary", _)] => return Err(SoakError::TwoOwners),
            [("primary", "unprotected"), ("standby", "waiting")] => return Ok(false),
            [("standby", _), ("primary", _)] => {
                pair.change_roles();
                return Ok(true);
            }
            [(_, a), (_, b)] if Instant::now() >= end => return Err(SoakError::NoOwner(a.into(), b.into())),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}
