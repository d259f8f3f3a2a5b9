//! The way to the world: a tap device or a unix stream socket.

use crate::port::{Outcome, Port, PortError};
use crate::settings::UplinkKey;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Why the uplink could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UplinkError {
    /// No such device.
    #[error(
        "There is no network device {0}; make it with: ip tuntap add dev {0} mode tap && ip link set {0} up"
    )]
    NoDevice(String),
    /// The tun driver is not there or not permitted.
    #[error("Cannot open /dev/net/tun; the tun module and the right to use it are needed")]
    Tun(#[source] io::Error),
    /// The device cannot be used as a tap.
    #[error("Cannot use {0} as a tap; it must be a tap device that no other program has open")]
    Attach(String, #[source] io::Error),
    /// The socket does not answer.
    #[error("Cannot connect to the uplink socket {0}")]
    Connect(PathBuf, #[source] io::Error),
}

/// What sending one frame came to.
pub(crate) enum Sent {
    /// The uplink has it.
    Taken,
    /// The uplink refused this frame.
    Refused,
    /// Not now.
    Later,
    /// The uplink is gone for good.
    Gone(io::Error),
}

/// The uplink, non-blocking.
pub(crate) enum Uplink {
    Tap { file: File, frame: Vec<u8> },
    Stream(Port),
}

impl Uplink {
    pub(crate) fn open(key: &UplinkKey) -> Result<Uplink, UplinkError> {
        match key {
            UplinkKey::Tap(name) => open_tap(name),
            UplinkKey::Stream(path) => UnixStream::connect(path)
                .and_then(Port::new)
                .map(Uplink::Stream)
                .map_err(|e| UplinkError::Connect(path.clone(), e)),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Uplink::Tap { file, .. } => file.as_fd(),
            Uplink::Stream(port) => port.socket().as_fd(),
        }
    }

    /// Whether bytes of frames already taken still wait for the uplink.
    pub(crate) fn has_backlog(&self) -> bool {
        matches!(self, Uplink::Stream(port) if port.backlog() > 0)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> Sent {
        match self {
            Uplink::Tap { file, .. } => match file.write(frame) {
                Ok(_) => Sent::Taken,
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::AGAIN | Errno::INTR) => Sent::Later,
                    Some(Errno::BADFD) => Sent::Gone(e),
                    // A tap that is down (EIO) or out of memory (ENOBUFS), or a frame it does not like (EINVAL).
                    _ => Sent::Refused,
                },
            },
            Uplink::Stream(port) => match port.send(frame) {
                Ok(true) => Sent::Taken,
                Ok(false) => Sent::Later,
                Err(PortError::Io(e)) => Sent::Gone(e),
                Err(PortError::Length(_)) => Sent::Refused,
            },
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Uplink::Tap { .. } => Ok(()),
            Uplink::Stream(port) => port.flush().map_err(into_io),
        }
    }

    /// Gives a few frames from the world to `take`; an error means that the uplink is gone.
    pub(crate) fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        match self {
            Uplink::Tap { file, frame } => {
                for _ in 0..64 {
                    match file.read(frame) {
                        Ok(n) => take(&frame[..n]),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        // A tap that is down gives EIO until it is up again.
                        Err(e) if Errno::from_io_error(&e) == Some(Errno::IO) => return Ok(()),
                        Err(e) => return Err(e),
                    }
                }
                Ok(())
            }
            Uplink::Stream(port) => match port.read(take).map_err(into_io)? {
                Outcome::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
                Outcome::Empty | Outcome::More => Ok(()),
            },
        }
    }
}

fn into_io(error: PortError) -> io::Error {
    match error {
        PortError::Io(e) => e,
        e @ PortError::Length(_) => io::Error::new(io::ErrorKind::InvalidData, e),
    }
}

fn open_tap(name: &str) -> Result<Uplink, UplinkError> {
    let probe = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(|e| UplinkError::Attach(name.to_owned(), e.into()))?;
    // Attaching to a missing name would silently make a new device that no bridge knows.
    rustix::net::netdevice::name_to_index(&probe, name)
        .map_err(|_| UplinkError::NoDevice(name.to_owned()))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(UplinkError::Tun)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq, which `request` is, with a name that ends in a zero byte.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(UplinkError::Attach(name.to_owned(), io::Error::last_os_error()));
    }
    // A program that had a persistent tap before may have left it with offloads that frames here do not carry.
    // SAFETY: TUNSETOFFLOAD takes a number, not a pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, 0 as libc::c_ulong) } < 0 {
        return Err(UplinkError::Attach(name.to_owned(), io::Error::last_os_error()));
    }
    Ok(Uplink::Tap { file, frame: vec![0; crate::port::FRAME_LIMIT] })
}
