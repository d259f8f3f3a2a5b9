//! What this machine must have for a plug, and whether it has it.

use crate::buffer::PathError;
use crate::device::Device;
use crate::filter::Diversion;
use crate::netlink::{Netlink, NetlinkError};
use crate::plug::Plug;
use crate::stage::enter_namespace;
use std::thread;

/// Something that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The right to change network devices.
    Right,
    /// `sch_plug`.
    Plug,
    /// `ifb`.
    Ifb,
    /// `sch_ingress`, a classifier, `act_mirred`.
    Redirect,
}

impl Need {
    /// What is missing.
    pub fn what(self) -> &'static str {
        match self {
            Need::Right => "The right to change network devices (CAP_NET_ADMIN) is missing",
            Need::Plug => "The kernel has no sch_plug, which holds the frames",
            Need::Ifb => "The kernel has no ifb devices",
            Need::Redirect => {
                "The kernel cannot redirect incoming frames: sch_ingress, act_mirred, and cls_matchall or cls_u32 are needed"
            }
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Need::Right => "run as root, or give the program CAP_NET_ADMIN",
            Need::Plug => {
                "try modprobe sch_plug (CONFIG_NET_SCH_PLUG; Debian's linux-image-amd64 has it), or use the plugin \
                 `userspace`, which needs no module"
            }
            Need::Ifb => {
                "try modprobe ifb (CONFIG_IFB), or use the plugin `userspace`, which needs no module"
            }
            Need::Redirect => {
                "try modprobe -a sch_ingress act_mirred cls_matchall, or use the plugin `userspace`, which needs no module"
            }
        }
    }
}

/// Tries what a plug needs, with `ifb` also what a redirection needs, in a network namespace that is gone afterwards: nothing of
/// this machine's own network is touched. The kernel loads its modules where it may. Needs root; blocks for some
/// milliseconds.
pub fn probe(ifb: bool) -> Vec<Need> {
    // A thread's own network namespace ends with the thread.
    let tried = thread::scope(|scope| scope.spawn(move || try_all(ifb)).join());
    tried.unwrap_or_default()
}

/// All that keeps a plugin from working here, as sentences: what the kernel lacks, then what `look` finds at the devices.
pub fn lacking(ifb: bool, look: impl FnOnce(&mut Netlink) -> Result<(), PathError>) -> Vec<String> {
    let mut lacking: Vec<_> = probe(ifb).into_iter().map(|need| PathError::Lacks(need).to_string()).collect();
    let looked = Netlink::open().map(|mut netlink| look(&mut netlink));
    if let Ok(Err(error)) = looked {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        lacking.push(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }
    lacking
}

fn try_all(ifb: bool) -> Vec<Need> {
    if enter_namespace().is_err() {
        return vec![Need::Right];
    }
    let Ok(mut netlink) = Netlink::open() else { return vec![Need::Right] };
    let netlink = &mut netlink;
    let mut needs = Vec::new();
    match Plug::make(netlink, LOOPBACK, 0) {
        Err(e) if e.is_not_permitted() => return vec![Need::Right],
        Err(_) => needs.push(Need::Plug),
        Ok(_) => {}
    }
    if !ifb {
        return needs;
    }
    match (made(netlink, "target"), made(netlink, "source")) {
        (Ok(target), Ok(source)) if Diversion::install(netlink, source, target).is_err() => {
            needs.push(Need::Redirect);
        }
        (Ok(_), Ok(_)) => {}
        _ => needs.push(Need::Ifb),
    }
    needs
}

/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;

fn made(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    Device::make(netlink, name, "ifb")?;
    Ok(Device::find(netlink, name)?.map_or(0, |d| d.index))
}
