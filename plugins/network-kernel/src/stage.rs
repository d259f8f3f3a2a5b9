//! An empty network namespace, and taps and bridges in it: where plugs are probed, measured and tested.

use crate::device::Device;
use crate::netlink::{Netlink, NetlinkError};
use rustix::thread::UnshareFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Without it a bridge says nothing of its own accord.
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

/// From here on this thread, and the threads and processes that it starts, are in an empty network namespace. Needs root.
#[allow(unsafe_code)]
pub fn enter_namespace() -> io::Result<()> {
    // SAFETY: a new network namespace for this thread; nothing else that threads share is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Opens a tap, non-blocking. It is made if need be, down, and goes with its last user.
#[allow(unsafe_code)]
pub fn open_tap(name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq, which `request` is, with a name that ends in a zero byte.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Has a tap stay when nobody uses it.
#[allow(unsafe_code)]
pub fn keep_tap(tap: &File) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes a number, not a pointer.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1 as libc::c_ulong) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a bridge that says nothing itself, up; answers its number.
pub fn make_bridge(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    Device::make_with(netlink, name, "bridge", &[(IFLA_BR_MCAST_SNOOPING, 0)])?;
    let Some(bridge) = Device::find(netlink, name)? else { return Ok(0) };
    bridge.hush(netlink)?;
    bridge.up(netlink)?;
    Ok(bridge.index)
}
