//! Attaching to a tap.

use rustix::net::{AddressFamily, SocketType};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// The tap of this name, non-blocking. A missing one is not made: no bridge would know it.
pub(crate) fn open(name: &str) -> io::Result<File> {
    let any = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&any, name)?;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq, which `request` is, with a name of at most 15 bytes and a zero. TUNSETOFFLOAD takes
    // a number: whoever had the tap before may have left it with offloads that frames here do not carry.
    let attached = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) == 0
            && libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, 0 as libc::c_ulong) == 0
    };
    if attached { Ok(file) } else { Err(io::Error::last_os_error()) }
}
