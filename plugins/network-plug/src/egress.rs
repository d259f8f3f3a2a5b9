//! The device by which the guest's frames leave, and the plug at its root.

use crate::settings::Settings;
use aventine_api::{Context, PluginError, Side};
use aventine_network_kernel::{
    Buffer, Claim, Device, Need, Netlink, NetlinkError, Path, PathError, Plug, QdiscInfo,
};
use std::time::{Duration, Instant};

/// How long a busy device is waited for to be empty for a moment.
const QUIET: Duration = Duration::from_secs(1);

/// The guest's way out.
pub(crate) struct Egress {
    tap: Device,
    device: Device,
    plug: Plug,
    limit: u32,
    _claim: Claim,
}

/// Makes the buffer; what an earlier process left at the device is dropped.
pub(crate) fn make(config: &str, context: Context) -> Result<Buffer<Egress>, PluginError> {
    let settings =
        Settings::parse(config).map_err(|e| PluginError::new(aventine_api::ErrorCode::Config, e))?;
    let mut netlink =
        Netlink::open().map_err(|e| PluginError::new(aventine_api::ErrorCode::Unavailable, e))?;
    let path = Egress::make(&mut netlink, &settings, context.side)?;
    Buffer::new(netlink, path, settings.limit, context)
}

impl Egress {
    fn make(netlink: &mut Netlink, settings: &Settings, side: Side) -> Result<Egress, PathError> {
        let (tap, device) = find(netlink, settings)?;
        let name = device.name.clone();
        let claim = Claim::take(&name)?;
        reclaim(netlink, &device)?;
        check(netlink, &device)?;
        let limit = if side == Side::Primary { settings.limit } else { 0 };
        let failed = |e| PathError::at("put a plug at", &name, Some(Need::Plug), e);
        let plug = Plug::make(netlink, device.index, limit).map_err(failed)?;
        let path = Egress { tap, device, plug, limit: settings.limit, _claim: claim };
        if side == Side::Primary {
            path.plug.release_all(netlink).map_err(|e| path.error("open the plug at", e))?;
        }
        Ok(path)
    }

    fn error(&self, doing: &'static str, source: NetlinkError) -> PathError {
        PathError::at(doing, &self.device.name, None, source)
    }

    /// Whether the plug holds from a moment on at which it was empty: then it counts every frame that it holds.
    fn try_hold(&self, netlink: &mut Netlink) -> Result<bool, NetlinkError> {
        if self.plug.stats(netlink)?.packets > 0 {
            return Ok(false);
        }
        self.plug.buffer(netlink)?;
        if self.plug.stats(netlink)?.packets == 0 {
            return Ok(true);
        }
        self.plug.release_all(netlink).map(|()| false)
    }
}

/// The guest's tap and its way out.
pub(crate) fn find(netlink: &mut Netlink, settings: &Settings) -> Result<(Device, Device), PathError> {
    let all = Device::all(netlink).map_err(|e| PathError::at("look for", &settings.device, None, e))?;
    let named = |name: &str| {
        all.iter().find(|d| d.name == name).cloned().ok_or_else(|| PathError::NoDevice(name.to_owned()))
    };
    let tap = named(&settings.device)?;
    if tap.kind != "tun" {
        return Err(PathError::NotATap { device: tap.name });
    }
    if let Some(egress) = &settings.egress {
        return Ok((tap, named(egress)?));
    }
    let bridge = all.iter().find(|d| Some(d.index) == tap.master && d.kind == "bridge");
    let ports = bridge.map(|b| all.iter().filter(|d| d.master == Some(b.index) && d.index != tap.index));
    match ports.map(Iterator::collect::<Vec<_>>).as_deref() {
        Some([other]) => Ok((tap, (*other).clone())),
        _ => Err(PathError::NoEgress { device: tap.name }),
    }
}

/// Whether the device's root is free for a plug, or has one of ours.
pub(crate) fn check(netlink: &mut Netlink, device: &Device) -> Result<(), PathError> {
    let failed = |e| PathError::at("look at the root qdisc of", &device.name, None, e);
    match QdiscInfo::root(netlink, device.index).map_err(failed)? {
        // Those that the kernel attaches by itself have no handle.
        Some(root) if root.handle != 0 && !root.is_ours() => {
            Err(PathError::ForeignRoot { device: device.name.clone(), kind: root.kind })
        }
        _ => Ok(()),
    }
}

/// Drops what a process that is gone has left at the device; `false`: nothing of ours was there.
pub(crate) fn reclaim(netlink: &mut Netlink, device: &Device) -> Result<bool, PathError> {
    let failed = |e| PathError::at("remove an earlier plug from", &device.name, None, e);
    let root = QdiscInfo::root(netlink, device.index).map_err(failed)?;
    if !root.is_some_and(|r| r.is_ours()) {
        return Ok(false);
    }
    Plug::remove(netlink, device.index).map_err(failed).map(|()| true)
}

impl Path for Egress {
    fn plug(&self) -> Option<Plug> {
        Some(self.plug)
    }

    fn plugged(&self) -> &str {
        &self.device.name
    }

    fn tap(&self) -> (u32, &str) {
        (self.tap.index, &self.tap.name)
    }

    fn hold(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        // Frames that were queued before count for no epoch, and would leave in place of as many that do.
        let deadline = Instant::now() + QUIET;
        while Instant::now() < deadline {
            if self.try_hold(netlink).map_err(|e| self.error("close the plug at", e))? {
                return Ok(());
            }
        }
        tracing::warn!(
            device = self.device.name,
            "the device is never idle; what is queued there is dropped once"
        );
        let mut plug = self.plug;
        plug.renew(netlink, self.limit).map_err(|e| self.error("close the plug at", e))?;
        self.plug = plug;
        Ok(())
    }

    fn let_go(&mut self, _: &mut Netlink) -> Result<(), PathError> {
        // Taking the plug away could cost frames that are on their way through it. It is open, and goes with the guest.
        Ok(())
    }

    fn silence(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        let mut plug = self.plug;
        match plug.renew(netlink, 0) {
            Err(e) if e.is_absent() => Ok(()),
            other => other.map(|()| self.plug = plug).map_err(|e| self.error("silence", e)),
        }
    }

    fn pass(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        let opened = self.plug.limit(netlink, self.limit).and_then(|()| self.plug.release_all(netlink));
        opened.map_err(|e| self.error("open the plug at", e))
    }

    fn remove(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        Plug::remove(netlink, self.device.index).map_err(|e| self.error("remove the plug from", e))
    }
}
