//! Network devices: found, made, marked, removed.

use crate::netlink::{CREATE, EXCLUSIVE, Netlink, NetlinkError};
use crate::wire::{Message, Request, u32_at, u64_at};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
/// Bytes of `struct ifinfomsg`.
const FIXED: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFF_UP: u32 = 1;

/// A network device as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it: `tun`, `ifb`, `bridge`, …; empty for hardware.
    pub kind: String,
    /// Its alias, a text that anybody with the right may set; empty if it has none.
    pub alias: String,
    /// The number of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// What it counts.
    pub counters: Counters,
}

/// Packets that a device has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// That came in. For a tap: from the guest. For an IFB: that it was given.
    pub received: u64,
    /// That went out. For a tap: to the guest. For an IFB: that it has given back.
    pub sent: u64,
    /// That it lost in either way.
    pub dropped: u64,
}

impl Device {
    /// The device of this name, if there is one.
    pub fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Device>, NetlinkError> {
        Device::get(netlink, Request::new(GETLINK, 0, &fixed(0, 0, 0)).with_text(IFLA_IFNAME, name))
    }

    /// The device of this number, if it is still there.
    pub fn at(netlink: &mut Netlink, index: u32) -> Result<Option<Device>, NetlinkError> {
        Device::get(netlink, Request::new(GETLINK, 0, &fixed(index, 0, 0)))
    }

    fn get(netlink: &mut Netlink, request: Request) -> Result<Option<Device>, NetlinkError> {
        let mut found = None;
        match netlink.ask(request, |message| found = Device::read(&message)) {
            Err(e) if e.is_absent() => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// All devices of the network namespace.
    pub fn all(netlink: &mut Netlink) -> Result<Vec<Device>, NetlinkError> {
        netlink.list(|| Request::new(GETLINK, 0, &fixed(0, 0, 0)), |message| Device::read(&message))
    }

    fn read(message: &Message<'_>) -> Option<Device> {
        if message.kind != NEWLINK {
            return None;
        }
        let attributes = message.attributes(FIXED);
        let stats = attributes.find(IFLA_STATS64).unwrap_or_default();
        let count = |position: usize| u64_at(stats, position * 8).unwrap_or_default();
        Some(Device {
            index: u32_at(message.body, 4)?,
            name: attributes.text(IFLA_IFNAME)?,
            kind: attributes.inside(IFLA_LINKINFO).text(IFLA_INFO_KIND).unwrap_or_default(),
            alias: attributes.text(IFLA_IFALIAS).unwrap_or_default(),
            master: attributes.number(IFLA_MASTER),
            // rx_packets, tx_packets, …, rx_dropped, tx_dropped of struct rtnl_link_stats64.
            counters: Counters { received: count(0), sent: count(1), dropped: count(6) + count(7) },
        })
    }

    /// Makes a device of this kind, down. An error [`NetlinkError::is_taken`]: there is one of this name.
    pub fn make(netlink: &mut Netlink, name: &str, kind: &str) -> Result<(), NetlinkError> {
        Device::make_with(netlink, name, kind, &[])
    }

    /// Makes a device of this kind, down, with options of the kind's own (`IFLA_INFO_DATA`), which are bytes.
    pub fn make_with(
        netlink: &mut Netlink,
        name: &str,
        kind: &str,
        options: &[(u16, u8)],
    ) -> Result<(), NetlinkError> {
        let request = Request::new(NEWLINK, CREATE | EXCLUSIVE, &fixed(0, 0, 0)).with_text(IFLA_IFNAME, name);
        let data = |r: Request| options.iter().fold(r, |r, (kind, value)| r.with(*kind, &[*value]));
        netlink.change(request.nested(IFLA_LINKINFO, |r| {
            let r = r.with_text(IFLA_INFO_KIND, kind);
            if options.is_empty() { r } else { r.nested(IFLA_INFO_DATA, data) }
        }))
    }

    /// Sets how many packets may wait in it.
    pub fn queue(&self, netlink: &mut Netlink, packets: u32) -> Result<(), NetlinkError> {
        let request = Request::new(SETLINK, 0, &fixed(self.index, 0, 0));
        netlink.change(request.with(IFLA_TXQLEN, &packets.to_ne_bytes()))
    }

    /// Sets its alias.
    pub fn mark(&self, netlink: &mut Netlink, alias: &str) -> Result<(), NetlinkError> {
        netlink.change(Request::new(SETLINK, 0, &fixed(self.index, 0, 0)).with_text(IFLA_IFALIAS, alias))
    }

    /// Keeps the host's IPv6 from speaking at it: what a host sends by a device of its own accord would be held there as a guest's
    /// frames are. Done, too, where there is no IPv6.
    pub fn hush(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        const EAFNOSUPPORT: i32 = 97;
        let request = Request::new(SETLINK, 0, &fixed(self.index, 0, 0)).nested(IFLA_AF_SPEC, |r| {
            r.nested(AF_INET6, |r| r.with(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]))
        });
        match netlink.change(request) {
            Err(e) if e.errno() == Some(EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    /// Sets it up.
    pub fn up(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        netlink.change(Request::new(SETLINK, 0, &fixed(self.index, IFF_UP, IFF_UP)))
    }

    /// Makes it a port of the device number `master`.
    pub fn enslave(&self, netlink: &mut Netlink, master: u32) -> Result<(), NetlinkError> {
        let request = Request::new(SETLINK, 0, &fixed(self.index, 0, 0));
        netlink.change(request.with(IFLA_MASTER, &master.to_ne_bytes()))
    }

    /// Removes it, and with it what it holds. Done, too, when it is gone already.
    pub fn remove(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
        match netlink.change(Request::new(DELLINK, 0, &fixed(index, 0, 0))) {
            Err(e) if e.is_absent() => Ok(()),
            other => other,
        }
    }
}

/// `struct ifinfomsg`.
fn fixed(index: u32, flags: u32, change: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}
