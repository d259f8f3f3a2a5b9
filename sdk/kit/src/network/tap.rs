//! Opening a tap.

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};
use rustix::net::netdevice;
use std::ffi::{c_int, c_short};
use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<std::ffi::c_uint>(b'T', 208);
const IFF_TAP: c_short = 2;
const IFF_NO_PI: c_short = 0x1000;

/// The kernel's `ifreq`, as far as it is used: a name that ends in a zero byte, and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: c_short,
    rest: [u8; 22],
}

/// The tap of this name, non-blocking. A missing one is not made: no bridge would know it.
pub(super) fn open(device: &str) -> io::Result<File> {
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    if !(1..request.name.len()).contains(&device.len()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device's name has 1 to 15 bytes"));
    }
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    netdevice::name_to_index(UnixDatagram::unbound()?, device)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: TUNSETIFF updates an ifreq, of whose size and beginning `request` is, with a name that ends in a zero byte.
    // TUNSETOFFLOAD takes a number: whoever had the tap before may have left it with offloads that frames here do not carry.
    unsafe {
        ioctl(&tap, Updater::<TUNSETIFF, _>::new(&mut request))?;
        ioctl(&tap, IntegerSetter::<TUNSETOFFLOAD>::new_usize(0))?;
    }
    Ok(tap.into())
}
