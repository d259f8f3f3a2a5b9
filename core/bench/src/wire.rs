//! A guest and the world, joined by a bridge in a network namespace of this thread's own.
//!
//! ```text
//!  guest ══ tap `guest0` ── bridge `br0` ── tap `world0` ══ world
//! ```

use aventine_network_kernel::{
    Device, Netlink, NetlinkError, enter_namespace, keep_tap, make_bridge, open_tap,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

pub(crate) const GUEST: &str = "guest0";
const WORLD: &str = "world0";
const BRIDGE: &str = "br0";
/// Frames that may wait at the world's end: more than are ever under way. Linux 6.1 refuses a tap's queue of 65536.
const QUEUE: u32 = 8192;
/// Longer than a bridge takes to take up its ports.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is nothing to measure on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No namespace.
    #[error("Cannot make a network namespace: run this as root")]
    Namespace(#[source] io::Error),
    /// No taps.
    #[error("Cannot make the tap {0}: load the module tun, and run this as root")]
    Tap(&'static str, #[source] io::Error),
    /// No bridge.
    #[error("Cannot make a bridge of two taps")]
    Bridge(#[from] NetlinkError),
    /// The bridge forwards nothing.
    #[error("The bridge does not forward frames after {PATIENCE:?}")]
    Silent,
    /// A tap does not work.
    #[error("Cannot send or receive a frame")]
    Frame(#[source] io::Error),
}

/// The world's end.
pub(crate) struct World(File);

impl World {
    /// Takes what has come; answers how many of our frames that were.
    pub(crate) fn take(&mut self) -> Result<u64, WireError> {
        let (mut buffer, header, mut came) = ([0; 2048], frame(14), 0);
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) => came += u64::from(buffer[..length].starts_with(&header)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(came),
                Err(e) => return Err(WireError::Frame(e)),
            }
        }
    }
}

/// The guest's end once more: a tap has one user at a time.
pub(crate) fn guest() -> Result<File, WireError> {
    open_tap(GUEST).map_err(|e| WireError::Tap(GUEST, e))
}

/// A frame of the experimental protocol, this many bytes long.
pub(crate) fn frame(length: usize) -> Vec<u8> {
    let mut frame = [[0x52, 0x54, 0, 0xa7, 0xe0, 0x0d], [0x52, 0x54, 0, 0xa7, 0xe0, 0x0c]].concat();
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.resize(length, 0);
    frame
}

/// From here on this thread, and the threads that it starts, are in a namespace with nothing but a guest and a world. Answers
/// their ends.
pub(crate) fn enter() -> Result<(File, World), WireError> {
    enter_namespace().map_err(WireError::Namespace)?;
    let netlink = &mut Netlink::open()?;
    let bridge = make_bridge(netlink, BRIDGE)?;
    let mut ends = Vec::new();
    for name in [GUEST, WORLD] {
        let failed = |e| WireError::Tap(name, e);
        let tap = open_tap(name).map_err(failed)?;
        // It goes with its namespace: the guest's has several users, one after the other.
        keep_tap(&tap).map_err(failed)?;
        ends.push(tap);
        let Some(device) = Device::find(netlink, name)? else { continue };
        device.hush(netlink)?;
        device.queue(netlink, QUEUE)?;
        device.up(netlink)?;
        device.enslave(netlink, bridge)?;
    }
    let (Some(world), Some(mut guest)) = (ends.pop(), ends.pop()) else { unreachable!("two taps") };
    let mut world = World(world);
    await_bridge(&mut guest, &mut world)?;
    Ok((guest, world))
}

fn await_bridge(guest: &mut File, world: &mut World) -> Result<(), WireError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        guest.write_all(&frame(60)).map_err(WireError::Frame)?;
        if world.take()? > 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(WireError::Silent)
}
