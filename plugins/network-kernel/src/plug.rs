//! A device's root qdisc, and `sch_plug` as one.
//!
//! ```text
//!                 ┌───────────────── sch_plug ─────────────────┐
//!  enqueue ──────►│ open epoch │ BUFFER │ sealed │ RELEASE_ONE │──► device     limit: bytes; more is dropped, and counted
//!                 └────────────────────────────────────────────┘
//!                   RELEASE_INDEFINITE: everything passes, in order, until the next BUFFER
//! ```
//! It holds from the moment it is made. Its state cannot be read back, only its counters.
//!
//! Two handles mark a plug as ours, so that the one can be replaced by the other in one step, without a moment in which
//! frames pass. Requests name the handle, so they never change somebody else's qdisc.

use crate::netlink::{CREATE, ECHO, EXCLUSIVE, Netlink, NetlinkError, REPLACE};
use crate::wire::{Message, Request, u32_at, u64_at};

pub(crate) const NEWQDISC: u16 = 36;
pub(crate) const DELQDISC: u16 = 37;
const GETQDISC: u16 = 38;
/// Bytes of `struct tcmsg`.
pub(crate) const FIXED: usize = 20;
/// `TC_H_ROOT`.
const ROOT: u32 = 0xffff_ffff;
pub(crate) const TCA_KIND: u16 = 1;
pub(crate) const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;
/// `TCQ_PLUG_…` of linux/pkt_sched.h.
const BUFFER: u32 = 0;
const RELEASE_ONE: u32 = 1;
const RELEASE_INDEFINITE: u32 = 2;
const LIMIT: u32 = 3;
/// The handles of our plugs.
const HANDLES: [u32; 2] = [0x0a7e_0000, 0x0a7f_0000];

/// A qdisc as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QdiscInfo {
    /// `plug`, `fq_codel`, …
    pub kind: String,
    /// Zero for one that the kernel attached by itself.
    pub handle: u32,
    /// Its counters.
    pub stats: QueueStats,
}

/// What a qdisc counts. Bytes include the Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Packets in it now.
    pub packets: u32,
    /// Bytes in it now.
    pub bytes: u32,
    /// Packets that were too many, ever.
    pub drops: u32,
    /// Packets that it has given to the device, ever.
    pub sent: u64,
}

impl QdiscInfo {
    /// The root qdisc of a device. `None`: one that takes no configuration, and holds nothing.
    pub fn root(netlink: &mut Netlink, device: u32) -> Result<Option<QdiscInfo>, NetlinkError> {
        let mut found = None;
        let request = Request::new(GETQDISC, ECHO, &tcmsg(device, 0, ROOT, 0));
        netlink.ask(request, |message| found = QdiscInfo::read(&message))?;
        Ok(found)
    }

    /// Every qdisc of a device that was not attached by the kernel itself, with its parent.
    pub fn all(netlink: &mut Netlink, device: u32) -> Result<Vec<(u32, QdiscInfo)>, NetlinkError> {
        netlink.list(
            || Request::new(GETQDISC, 0, &tcmsg(device, 0, 0, 0)),
            |message| {
                let of_this = u32_at(message.body, 4) == Some(device);
                let info = QdiscInfo::read(&message).filter(|q| of_this && q.handle != 0)?;
                Some((u32_at(message.body, 12)?, info))
            },
        )
    }

    fn read(message: &Message<'_>) -> Option<QdiscInfo> {
        if message.kind != NEWQDISC {
            return None;
        }
        let attributes = message.attributes(FIXED);
        let stats = attributes.inside(TCA_STATS2);
        let queue = stats.find(TCA_STATS_QUEUE).unwrap_or_default();
        let basic = stats.find(TCA_STATS_BASIC).unwrap_or_default();
        let wide = stats.find(TCA_STATS_PKT64).and_then(|v| u64_at(v, 0));
        Some(QdiscInfo {
            kind: attributes.text(TCA_KIND)?,
            handle: u32_at(message.body, 8)?,
            stats: QueueStats {
                packets: u32_at(queue, 0).unwrap_or_default(),
                bytes: u32_at(queue, 4).unwrap_or_default(),
                drops: u32_at(queue, 8).unwrap_or_default(),
                // The 64-bit count is there once 32 bits are not enough.
                sent: wide.or_else(|| u32_at(basic, 8).map(u64::from)).unwrap_or_default(),
            },
        })
    }

    /// Whether it is a plug that an Aventine made.
    pub fn is_ours(&self) -> bool {
        self.kind == "plug" && HANDLES.contains(&self.handle)
    }
}

/// A `sch_plug` of ours at the root of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plug {
    device: u32,
    handle: u32,
}

impl Plug {
    /// Puts a plug at the root, which holds from now on, at most `limit` bytes. The root must be the kernel's own.
    pub fn make(netlink: &mut Netlink, device: u32, limit: u32) -> Result<Plug, NetlinkError> {
        let plug = Plug { device, handle: HANDLES[0] };
        netlink.change(plug.request(CREATE | EXCLUSIVE, RELEASE_ONE, limit)).map(|()| plug)
    }

    /// Drops what it holds and holds anew, at most `limit` bytes, in one step: nothing passes meanwhile.
    pub fn renew(&mut self, netlink: &mut Netlink, limit: u32) -> Result<(), NetlinkError> {
        let next = HANDLES[usize::from(self.handle == HANDLES[0])];
        let plug = Plug { handle: next, ..*self };
        netlink.change(plug.request(CREATE | REPLACE, RELEASE_ONE, limit))?;
        *self = plug;
        Ok(())
    }

    /// Everything held so far belongs to one epoch. Bounded; one system call and the kernel's answer.
    pub fn buffer(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        netlink.change(self.request(0, BUFFER, 0))
    }

    /// Lets out what was held before the last `buffer`, in order. The device sends it in its own time.
    pub fn release_one(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        netlink.change(self.request(0, RELEASE_ONE, 0))
    }

    /// Lets out everything, and whatever comes, until the next `buffer`.
    pub fn release_all(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        netlink.change(self.request(0, RELEASE_INDEFINITE, 0))
    }

    /// Most bytes to hold.
    pub fn limit(&self, netlink: &mut Netlink, limit: u32) -> Result<(), NetlinkError> {
        netlink.change(self.request(0, LIMIT, limit))
    }

    /// Its counters. An error that [`NetlinkError::is_absent`]: somebody took it away, or its device.
    pub fn stats(&self, netlink: &mut Netlink) -> Result<QueueStats, NetlinkError> {
        let mut found = None;
        // With the handle, so that whatever somebody put in its place is not taken for it.
        let request = Request::new(GETQDISC, ECHO, &tcmsg(self.device, self.handle, ROOT, 0));
        netlink.ask(request, |message| found = QdiscInfo::read(&message))?;
        Ok(found.map(|q| q.stats).unwrap_or_default())
    }

    /// Takes it away and drops what it holds. Done, too, when it is gone already.
    pub fn remove(netlink: &mut Netlink, device: u32) -> Result<(), NetlinkError> {
        match QdiscInfo::root(netlink, device) {
            Ok(Some(root)) if root.is_ours() => {
                let request = Request::new(DELQDISC, 0, &tcmsg(device, root.handle, ROOT, 0));
                netlink.change(request).or_else(|e| if e.is_absent() { Ok(()) } else { Err(e) })
            }
            Ok(_) => Ok(()),
            Err(e) if e.is_absent() => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// `struct tc_plug_qopt`: the action and the limit. A new plug takes the limit alone.
    fn request(&self, flags: u16, action: u32, limit: u32) -> Request {
        let mut options = [0; 8];
        options[..4].copy_from_slice(&action.to_ne_bytes());
        options[4..].copy_from_slice(&limit.to_ne_bytes());
        Request::new(NEWQDISC, flags, &tcmsg(self.device, self.handle, ROOT, 0))
            .with_text(TCA_KIND, "plug")
            .with(TCA_OPTIONS, &options)
    }
}

/// `struct tcmsg`.
pub(crate) fn tcmsg(device: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&device.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    bytes
}
