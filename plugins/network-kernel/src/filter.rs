//! Frames that come in at one device are redirected to another: an `ingress` qdisc, a classifier that matches everything, and
//! the `mirred` action.
//!
//! ```text
//!  guest ─► tap ─ ingress: matchall (or u32) ─ mirred ─► IFB ─ plug ─► back into the tap's input ─► bridge
//! ```
//! Every protocol is matched, also frames with a VLAN tag and frames without an address. The action's cookie marks the
//! filter as ours, and says whether the ingress qdisc was made for it.

use crate::netlink::{CREATE, EXCLUSIVE, Netlink, NetlinkError};
use crate::plug::{DELQDISC, FIXED, NEWQDISC, TCA_KIND, TCA_OPTIONS, tcmsg};
use crate::wire::{Attributes, Message, Request, u32_at};

const NEWTFILTER: u16 = 44;
const DELTFILTER: u16 = 45;
const GETTFILTER: u16 = 46;
/// `TC_H_INGRESS`, the place of an ingress or clsact qdisc.
const INGRESS: u32 = 0xffff_fff1;
/// `TC_H_MAJ_MASK & TC_H_INGRESS`, its handle.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MAKE(TC_H_INGRESS, TC_H_MIN_INGRESS)`, where filters of incoming frames hang.
const INCOMING: u32 = 0xffff_fff2;
/// Before every other filter.
const PRIORITY: u32 = 1;
/// `ETH_P_ALL`. The kernel reads it in network order; otherwise the filter matches nothing, and says nothing.
const ALL: u16 = 3;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_ACT_COOKIE: u16 = 6;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
/// `TC_U32_TERMINAL`: without keys, everything matches.
const TERMINAL: u8 = 1;
const MADE: &[u8] = b"aventine made";
const FOUND: &[u8] = b"aventine found";

/// A classifier that can match everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Classifier {
    Matchall,
    U32,
}

impl Classifier {
    fn name(self) -> &'static str {
        match self {
            Classifier::Matchall => "matchall",
            Classifier::U32 => "u32",
        }
    }

    fn actions(self) -> u16 {
        match self {
            Classifier::Matchall => TCA_MATCHALL_ACT,
            Classifier::U32 => TCA_U32_ACT,
        }
    }

    fn of(name: &str) -> Option<Classifier> {
        [Classifier::Matchall, Classifier::U32].into_iter().find(|c| c.name() == name)
    }
}

/// What a device's filters of incoming frames are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redirects {
    /// One is ours. Whether the qdisc that it hangs on was made for it.
    pub ours: Option<bool>,
    /// Some are not.
    pub foreign: bool,
}

/// The filters of a device's incoming frames.
pub fn redirects(netlink: &mut Netlink, device: u32) -> Result<Redirects, NetlinkError> {
    let request = || Request::new(GETTFILTER, 0, &tcmsg(device, 0, INCOMING, 0));
    let filters = match netlink.list(request, |message| Filter::read(&message)) {
        // Without an ingress qdisc some kernels say so, others have an empty list.
        Err(e) if matches!(e.errno(), Some(EINVAL | ENOENT)) => Vec::new(),
        other => other?,
    };
    let ours = filters.iter().find_map(|f| f.made);
    // A u32 filter shows its tables beside itself, with its priority and no action.
    let is_ours = |f: &Filter| f.made.is_some() || (ours.is_some() && f.priority == PRIORITY);
    Ok(Redirects { ours, foreign: !filters.iter().all(is_ours) })
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;

struct Filter {
    priority: u32,
    /// For a filter of ours: whether its qdisc was made for it.
    made: Option<bool>,
}

impl Filter {
    fn read(message: &Message<'_>) -> Option<Filter> {
        if message.kind != NEWTFILTER {
            return None;
        }
        let attributes = message.attributes(FIXED);
        let priority = u32_at(message.body, 16)? >> 16;
        let classifier = attributes.text(TCA_KIND).as_deref().and_then(Classifier::of);
        let cookie = classifier.and_then(|c| {
            let actions = attributes.inside(TCA_OPTIONS).inside(c.actions());
            actions.flat_map(|(_, action)| Attributes::of(action).find(TCA_ACT_COOKIE)).next()
        });
        Some(Filter { priority, made: cookie.filter(|c| [MADE, FOUND].contains(c)).map(|c| c == MADE) })
    }
}

/// A redirection of ours.
#[derive(Clone, Copy, Debug)]
pub struct Diversion {
    from: u32,
    made: bool,
}

impl Diversion {
    /// From now on every frame that comes in at `from` goes out at `to` instead.
    pub fn install(netlink: &mut Netlink, from: u32, to: u32) -> Result<Diversion, NetlinkError> {
        let qdisc = Request::new(NEWQDISC, CREATE | EXCLUSIVE, &tcmsg(from, INGRESS_HANDLE, INGRESS, 0));
        let made = match netlink.change(qdisc.with_text(TCA_KIND, "ingress")) {
            Err(e) if e.is_taken() => false,
            other => other.map(|()| true)?,
        };
        let diversion = Diversion { from, made };
        let mut installed = netlink.change(diversion.filter(Classifier::Matchall, to));
        if installed.as_ref().is_err_and(NetlinkError::is_unknown_kind) {
            installed = netlink.change(diversion.filter(Classifier::U32, to));
        }
        if let Err(error) = installed {
            diversion.remove_qdisc(netlink)?;
            return Err(error);
        }
        Ok(diversion)
    }

    /// Frames go their own way again. Done, too, when the device is gone.
    pub fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let removed = netlink.change(Request::new(DELTFILTER, 0, &tcmsg(self.from, 0, INCOMING, info())));
        gone_is_done(removed)?;
        self.remove_qdisc(netlink)
    }

    /// Removes what a process that is gone has left on a device; `false`: nothing of ours was there.
    pub fn reclaim(netlink: &mut Netlink, from: u32) -> Result<bool, NetlinkError> {
        let Some(made) = redirects(netlink, from)?.ours else { return Ok(false) };
        Diversion { from, made }.remove(netlink).map(|()| true)
    }

    fn remove_qdisc(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        // Filters that others have hung on it meanwhile keep it.
        if !self.made || redirects(netlink, self.from)?.foreign {
            return Ok(());
        }
        gone_is_done(netlink.change(Request::new(DELQDISC, 0, &tcmsg(self.from, INGRESS_HANDLE, INGRESS, 0))))
    }

    fn filter(&self, classifier: Classifier, to: u32) -> Request {
        let cookie = if self.made { MADE } else { FOUND };
        // `struct tc_mirred`: index, capabilities, action, two counts, what to do, the device.
        let mirred = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
        let mirred = mirred.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
        let action = |r: Request| {
            r.with_text(TCA_ACT_KIND, "mirred")
                .nested(TCA_ACT_OPTIONS, |r| r.with(TCA_MIRRED_PARMS, &mirred))
                .with(TCA_ACT_COOKIE, cookie)
        };
        Request::new(NEWTFILTER, CREATE | EXCLUSIVE, &tcmsg(self.from, 0, INCOMING, info()))
            .with_text(TCA_KIND, classifier.name())
            .nested(TCA_OPTIONS, |r| {
                let r = match classifier {
                    Classifier::Matchall => r,
                    // `struct tc_u32_sel` without a key.
                    Classifier::U32 => {
                        r.with(TCA_U32_SEL, &[TERMINAL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                    }
                };
                r.nested(classifier.actions(), |r| r.nested(1, action))
            })
    }
}

/// A filter's priority and protocol.
fn info() -> u32 {
    PRIORITY << 16 | u32::from(ALL.to_be())
}

/// A device that is gone has taken its filters along.
fn gone_is_done(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.is_absent() => Ok(()),
        other => other,
    }
}
