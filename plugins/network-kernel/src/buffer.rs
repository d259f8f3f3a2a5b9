//! The epoch verbs over a plug, however frames get to it.

use crate::claim::ClaimError;
use crate::netlink::{Netlink, NetlinkError};
use crate::plug::{Plug, QueueStats};
use crate::probe::Need;
use crate::watch::Watch;
use aventine_api::{
    Context, Disengage, Epoch, ErrorCode, NetAttachment, NetworkBuffer, NetworkStats, PluginError, Side,
};
use std::thread;
use std::time::{Duration, Instant};

/// How long the device may take to send what was let out.
const DRAIN: Duration = Duration::from_secs(10);

/// Why frames could not be brought to a plug, held, or let go.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// No such device.
    #[error(
        "There is no network device {0}; make it with: ip tuntap add dev {0} mode tap && ip link set {0} up"
    )]
    NoDevice(String),
    /// A device is of the wrong kind.
    #[error("{device} is not a tap device, so no guest can open it")]
    NotATap {
        /// The device.
        device: String,
    },
    /// Where the guest's frames leave is not clear.
    #[error(
        "{device} is not a port of a bridge with one other port, so it is not clear where the guest's frames leave; name \
         that device: egress = \"…\""
    )]
    NoEgress {
        /// The guest's tap.
        device: String,
    },
    /// Somebody else's qdisc is in the way.
    #[error("{device} has a root qdisc of its own ({kind}); remove it with: tc qdisc del dev {device} root")]
    ForeignRoot {
        /// The device.
        device: String,
        /// What it is.
        kind: String,
    },
    /// Somebody else's filters are in the way.
    #[error(
        "{device} has filters for incoming frames, which could let some past the buffer; remove them with: tc filter del \
         dev {device} ingress"
    )]
    ForeignFilter {
        /// The device.
        device: String,
    },
    /// A device of somebody else has the name that is needed.
    #[error("There is a device {name} that is not Aventine's; rename it with: ip link set {name} name NEW")]
    ForeignDevice {
        /// The name.
        name: String,
    },
    /// The kernel or the rights do not suffice.
    #[error("{}; {}", .0.what(), .0.remedy())]
    Lacks(Need),
    /// The device is somebody else's.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The kernel failed at a step.
    #[error("Failed to {doing} {device}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// To which device.
        device: String,
        /// Why.
        source: NetlinkError,
    },
    /// What was let out did not leave.
    #[error("{packets} frames that were let out are still queued at {device} after {DRAIN:?}")]
    Stuck {
        /// The device.
        device: String,
        /// How many.
        packets: u64,
    },
}

impl PathError {
    /// A step that failed: what the kernel lacks for it is told by `need`.
    pub fn at(doing: &'static str, device: &str, need: Option<Need>, source: NetlinkError) -> PathError {
        match need {
            _ if source.is_not_permitted() => PathError::Lacks(Need::Right),
            Some(need) if source.is_unknown_kind() => PathError::Lacks(need),
            _ => PathError::Step { doing, device: device.to_owned(), source },
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            PathError::Step { .. } => ErrorCode::Io,
            PathError::Stuck { .. } => ErrorCode::TimedOut,
            _ => ErrorCode::Unavailable,
        }
    }
}

impl From<PathError> for PluginError {
    fn from(error: PathError) -> PluginError {
        PluginError::new(error.code(), error)
    }
}

/// How a guest's frames get to a plug, and what is done about it in each mode of a buffer.
///
/// ```text
///  hold: passing ─► held from the next frame on        let_go: let out, empty ─► passing
///  pass: silent  ─► passing                            silence: anything ─► nothing leaves, what was held is dropped
/// ```
pub trait Path: Send {
    /// The plug, once there is one.
    fn plug(&self) -> Option<Plug>;

    /// The device that the plug is on, for messages.
    fn plugged(&self) -> &str;

    /// The guest's tap: its number and its name.
    fn tap(&self) -> (u32, &str);

    /// From now on frames are held. Exact: every frame before goes out, every frame after is counted by the plug.
    fn hold(&mut self, netlink: &mut Netlink) -> Result<(), PathError>;

    /// From now on frames pass. The plug holds nothing and lets everything through, or it is gone; then an error tells so, and
    /// frames pass all the same.
    fn let_go(&mut self, netlink: &mut Netlink) -> Result<(), PathError>;

    /// From now on nothing leaves. Also when it is not known what state the device is in; a device that is gone is silent.
    fn silence(&mut self, netlink: &mut Netlink) -> Result<(), PathError>;

    /// Frames pass; none are held, nothing did until now. Bounded: a takeover waits for it.
    fn pass(&mut self, netlink: &mut Netlink) -> Result<(), PathError>;

    /// Everything of ours is removed, and what it holds dropped.
    fn remove(&mut self, netlink: &mut Netlink) -> Result<(), PathError>;
}

/// `sch_plug` can tell one sealed epoch from the open one.
#[derive(Debug, thiserror::Error)]
#[error("Epoch {0} is sealed and not released; the kernel's plug cannot hold another sealed epoch beside it")]
struct TwoSealed(Epoch);

/// Holding was ended for good, or has not begun on this side.
#[derive(Debug, thiserror::Error)]
#[error("This buffer's session has ended, or another side owns the guest: it does not hold frames any more")]
struct EngageError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passing,
    Holding,
    Silent,
}

/// A network buffer in the kernel.
pub struct Buffer<P: Path> {
    netlink: Netlink,
    path: P,
    mode: Mode,
    ended: bool,
    /// The newest epoch sealed.
    sealed: Epoch,
    /// The epoch that is sealed in the plug and not released.
    waiting: Option<Epoch>,
    watch: Watch,
}

impl<P: Path> Buffer<P> {
    /// `path` passes frames on a primary, and is silent on a standby.
    pub fn new(netlink: Netlink, path: P, limit: u32, context: Context) -> Result<Buffer<P>, PluginError> {
        let mode = if context.side == Side::Primary { Mode::Passing } else { Mode::Silent };
        let (tap, name) = path.tap();
        let watch = Watch::start(tap, name, path.plugged(), limit, context)
            .map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
        Ok(Buffer { netlink, path, mode, ended: false, sealed: Epoch::COPY, waiting: None, watch })
    }

    /// Has the plug do something, if there is one.
    fn plug(
        &mut self,
        doing: &'static str,
        verb: fn(&Plug, &mut Netlink) -> Result<(), NetlinkError>,
    ) -> Result<(), PathError> {
        let Some(plug) = self.path.plug() else { return Ok(()) };
        verb(&plug, &mut self.netlink).map_err(|e| PathError::at(doing, self.path.plugged(), None, e))
    }

    /// Everything held goes out, then frames pass. A plug that is gone must not mute the guest: the way to it is removed all
    /// the same.
    fn let_go(&mut self) -> Result<(), PathError> {
        match self.open() {
            Err(stuck @ PathError::Stuck { .. }) => Err(stuck),
            opened => opened.and(self.path.let_go(&mut self.netlink)),
        }
    }

    /// Opens the plug, and waits until it is empty.
    fn open(&mut self) -> Result<(), PathError> {
        self.plug("let out what is held at", Plug::release_all)?;
        let deadline = Instant::now() + DRAIN;
        while let Some(plug) = self.path.plug() {
            let stats = plug.stats(&mut self.netlink);
            let stats =
                stats.map_err(|e| PathError::at("watch the plug of", self.path.plugged(), None, e))?;
            if stats.packets == 0 {
                break;
            }
            if Instant::now() >= deadline {
                let device = self.path.plugged().to_owned();
                return Err(PathError::Stuck { device, packets: stats.packets.into() });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl<P: Path> NetworkBuffer for Buffer<P> {
    fn depth(&self) -> u32 {
        1
    }

    fn attachment(&self) -> NetAttachment {
        NetAttachment::Tap(self.path.tap().1.to_owned())
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        match self.mode {
            Mode::Holding => return Ok(()),
            Mode::Silent => return Err(PluginError::new(ErrorCode::Refused, EngageError)),
            Mode::Passing => {}
        }
        self.path.hold(&mut self.netlink)?;
        (self.mode, self.ended, self.sealed, self.waiting) = (Mode::Holding, false, Epoch::COPY, None);
        let plug = self.path.plug();
        // An error shows at the next look, too.
        let baseline = plug.and_then(|p| p.stats(&mut self.netlink).ok()).unwrap_or_default();
        self.watch.hold(plug, QueueStats { packets: 0, bytes: 0, ..baseline });
        Ok(())
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        if epoch <= self.sealed {
            return Ok(());
        }
        if self.mode == Mode::Holding {
            if let Some(waiting) = self.waiting {
                return Err(PluginError::new(ErrorCode::Limit, TwoSealed(waiting)));
            }
            self.plug("seal an epoch at", Plug::buffer)?;
            self.waiting = Some(epoch);
            self.watch.sealed();
        }
        self.sealed = epoch;
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        if self.waiting.is_some_and(|sealed| sealed <= epoch) {
            self.plug("release an epoch at", Plug::release_one)?;
            self.waiting = None;
        }
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        if self.ended {
            return Ok(());
        }
        self.watch.rest(why == Disengage::Owner && self.mode != Mode::Silent);
        match why {
            Disengage::Owner if self.mode == Mode::Holding => {
                // Whatever fails here, nothing is held any more.
                (self.mode, self.ended, self.waiting) = (Mode::Passing, true, None);
                self.let_go()?;
            }
            Disengage::Owner => {}
            Disengage::NotOwner => {
                self.path.silence(&mut self.netlink)?;
                self.mode = Mode::Silent;
            }
        }
        (self.ended, self.waiting) = (true, None);
        Ok(())
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        if self.mode == Mode::Silent && !self.ended {
            self.path.pass(&mut self.netlink)?;
            self.mode = Mode::Passing;
            self.watch.rest(true);
        }
        Ok(())
    }

    fn stats(&self) -> NetworkStats {
        self.watch.stats()
    }
}

impl<P: Path> Drop for Buffer<P> {
    fn drop(&mut self) {
        self.watch.rest(false);
        // The guest is gone by now: what is held still may not leave.
        if let Err(error) = self.path.remove(&mut self.netlink) {
            let error = PluginError::from(error);
            tracing::error!(
                device = self.path.plugged(),
                error = error.chain(),
                "could not remove the network buffer; the next start or `aventine reclaim` does"
            );
        }
    }
}
