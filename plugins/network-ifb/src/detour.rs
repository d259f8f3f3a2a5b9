//! The way of a tap's frames through an IFB.

use crate::settings::Settings;
use aventine_api::{Context, ErrorCode, PluginError, Side};
use aventine_network_kernel::{
    Buffer, Claim, Device, Diversion, Need, Netlink, NetlinkError, Path, PathError, Plug, redirects,
};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread;
use std::time::{Duration, Instant};

/// How long the IFB may take to give back what it was given.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest name of a device.
const NAME: usize = 15;

/// Whose an IFB is, as its alias has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) guest: String,
    id: String,
    tap: String,
}

impl Mark {
    fn alias(&self) -> String {
        format!("aventine {} {} {}", self.guest, self.id, self.tap)
    }

    fn read(alias: &str) -> Option<Mark> {
        let mut words = alias.strip_prefix("aventine ")?.split(' ').map(str::to_owned);
        let mark = Mark { guest: words.next()?, id: words.next()?, tap: words.next()? };
        words.next().is_none().then_some(mark)
    }

    /// The IFB's name: the guest's and the table's, or what fits of them and a number made of both.
    fn name(&self) -> String {
        let whole = format!("ifb-{}-{}", self.guest, self.id);
        if whole.len() <= NAME && whole.is_ascii() {
            return whole;
        }
        let mut hash = DefaultHasher::new();
        (&self.guest, &self.id).hash(&mut hash);
        let guest = self.guest.chars().filter(char::is_ascii).take(6).collect::<String>();
        format!("ifb-{guest}-{:04x}", hash.finish() & 0xffff)
    }
}

/// An IFB with a plug at its root.
struct Ifb {
    device: Device,
    plug: Plug,
}

/// The way of one tap's frames.
pub(crate) struct Detour {
    tap: Device,
    mark: Mark,
    name: String,
    limit: u32,
    /// None after a session, until the next one.
    ifb: Option<Ifb>,
    diversion: Option<Diversion>,
    _claim: Claim,
}

/// Makes the buffer; what an earlier process left is removed, and what it held is dropped.
pub(crate) fn make(config: &str, context: Context) -> Result<Buffer<Detour>, PluginError> {
    let settings = Settings::parse(config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
    let mut netlink = Netlink::open().map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
    let mark = Mark { guest: context.guest.clone(), id: context.id.clone(), tap: settings.device };
    let path = Detour::make(&mut netlink, mark, settings.limit, context.side)?;
    Buffer::new(netlink, path, settings.limit, context)
}

impl Detour {
    fn make(netlink: &mut Netlink, mark: Mark, limit: u32, side: Side) -> Result<Detour, PathError> {
        let tap = find(netlink, &mark.tap)?;
        let claim = Claim::take(&mark.tap)?;
        reclaim(netlink, |m| m.guest == mark.guest && m.id == mark.id)?;
        clear(netlink, &tap)?;
        let name = mark.name();
        let mut detour = Detour { tap, mark, name, limit, ifb: None, diversion: None, _claim: claim };
        let made = detour.set_up(netlink, side);
        if made.is_err()
            && let Err(error) = detour.remove(netlink)
        {
            tracing::warn!(device = detour.name, %error, "what was set up so far is left behind");
        }
        made.map(|()| detour)
    }

    /// Primary: ready to hold. Standby: silent.
    fn set_up(&mut self, netlink: &mut Netlink, side: Side) -> Result<(), PathError> {
        match side {
            Side::Primary => self.prepare(netlink, self.limit),
            Side::Standby => self.prepare(netlink, 0).and_then(|()| self.divert(netlink)),
        }
    }

    /// An IFB with an empty, closed plug of this limit.
    fn prepare(&mut self, netlink: &mut Netlink, limit: u32) -> Result<(), PathError> {
        if let Some(ifb) = &mut self.ifb {
            let renewed = ifb.plug.renew(netlink, limit);
            return renewed.map_err(|e| PathError::at("renew the plug at", &self.name, Some(Need::Plug), e));
        }
        let at = |doing, need| {
            let name = self.name.clone();
            move |e| PathError::at(doing, &name, need, e)
        };
        Device::make(netlink, &self.name, "ifb").map_err(|e| match e.is_taken() {
            true => PathError::ForeignDevice { name: self.name.clone() },
            false => at("make", Some(Need::Ifb))(e),
        })?;
        let device = Device::find(netlink, &self.name).map_err(at("find", None))?;
        let device = device.ok_or_else(|| PathError::NoDevice(self.name.clone()))?;
        let plugged = device
            .mark(netlink, &self.mark.alias())
            .and_then(|()| device.hush(netlink))
            .map_err(at("mark", None))
            .and_then(|()| {
                Plug::make(netlink, device.index, limit).map_err(at("put a plug at", Some(Need::Plug)))
            })
            .and_then(|plug| device.up(netlink).map(|()| plug).map_err(at("start", None)));
        match plugged {
            Ok(plug) => self.ifb = Some(Ifb { device, plug }),
            Err(error) => {
                Device::remove(netlink, device.index).map_err(at("remove", None))?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn divert(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        if self.diversion.is_none()
            && let Some(ifb) = &self.ifb
        {
            let to = ifb.device.index;
            let installed = Diversion::install(netlink, self.tap.index, to);
            self.diversion = Some(installed.map_err(|e| {
                PathError::at("redirect the frames of", &self.tap.name, Some(Need::Redirect), e)
            })?);
        }
        Ok(())
    }

    fn undivert(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        if let Some(diversion) = &self.diversion {
            let removed = diversion.remove(netlink);
            removed.map_err(|e| {
                PathError::at("remove the redirection from", &self.tap.name, Some(Need::Redirect), e)
            })?;
            self.diversion = None;
        }
        Ok(())
    }

    /// Waits until the IFB has given back everything it was given: behind its plug it has queues of its own, which show in
    /// no backlog.
    fn drain(&self, netlink: &mut Netlink) -> Result<(), PathError> {
        let Some(ifb) = &self.ifb else { return Ok(()) };
        let failed = |e: NetlinkError| PathError::at("watch", &self.name, None, e);
        let deadline = Instant::now() + DRAIN;
        loop {
            let queued = ifb.plug.stats(netlink).map_err(failed)?.packets;
            let now = Device::at(netlink, ifb.device.index).map_err(failed)?;
            let counters = now.ok_or_else(|| PathError::NoDevice(self.name.clone()))?.counters;
            let inside = counters.received.saturating_sub(counters.sent + counters.dropped);
            if queued == 0 && inside == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let packets = inside + u64::from(queued);
                return Err(PathError::Stuck { device: self.name.clone(), packets });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn remove_ifb(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        if let Some(ifb) = &self.ifb {
            let index = ifb.device.index;
            let removed = Plug::remove(netlink, index).and_then(|()| Device::remove(netlink, index));
            removed.map_err(|e| PathError::at("remove", &self.name, None, e))?;
            self.ifb = None;
        }
        Ok(())
    }
}

/// The guest's tap.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Device, PathError> {
    let found = Device::find(netlink, name).map_err(|e| PathError::at("look for", name, None, e))?;
    let device = found.ok_or_else(|| PathError::NoDevice(name.to_owned()))?;
    // A tap, or a virtual interface of Xen's.
    if device.kind != "tun" && !device.kind.is_empty() {
        return Err(PathError::NotATap { device: device.name });
    }
    Ok(device)
}

/// Removes redirections that processes which are gone have left on the tap; others' filters are an error.
fn clear(netlink: &mut Netlink, tap: &Device) -> Result<(), PathError> {
    let failed = |e| PathError::at("look at the filters of", &tap.name, None, e);
    Diversion::reclaim(netlink, tap.index).map_err(failed)?;
    if redirects(netlink, tap.index).map_err(failed)?.foreign {
        return Err(PathError::ForeignFilter { device: tap.name.clone() });
    }
    Ok(())
}

/// Removes what processes that are gone have left for the marks that `whose` accepts; tells which devices. The redirection
/// goes first and what the IFB held is dropped with it.
pub(crate) fn reclaim(
    netlink: &mut Netlink,
    whose: impl Fn(&Mark) -> bool,
) -> Result<Vec<String>, PathError> {
    let all = Device::all(netlink).map_err(|e| PathError::at("look for", "IFBs", None, e))?;
    let mut removed = Vec::new();
    for ifb in all.iter().filter(|d| d.kind == "ifb") {
        let Some(mark) = Mark::read(&ifb.alias).filter(&whose) else { continue };
        let failed = |e| PathError::at("remove", &ifb.name, None, e);
        if let Some(tap) = all.iter().find(|d| d.name == mark.tap) {
            Diversion::reclaim(netlink, tap.index).map_err(failed)?;
        }
        Device::remove(netlink, ifb.index).map_err(failed)?;
        removed
            .push(format!("the IFB {} with its plug, and the redirection to it from {}", ifb.name, mark.tap));
    }
    Ok(removed)
}

impl Path for Detour {
    fn plug(&self) -> Option<Plug> {
        self.ifb.as_ref().map(|ifb| ifb.plug)
    }

    fn plugged(&self) -> &str {
        &self.name
    }

    fn tap(&self) -> (u32, &str) {
        (self.tap.index, &self.tap.name)
    }

    fn hold(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        self.prepare(netlink, self.limit)?;
        self.divert(netlink)
    }

    fn let_go(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        let before = self.drain(netlink);
        self.undivert(netlink)?;
        // What was redirected up to that moment.
        let after = self.drain(netlink);
        self.remove_ifb(netlink).and(before).and(after)
    }

    fn silence(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        let silenced = self.prepare(netlink, 0).and_then(|()| self.divert(netlink));
        match silenced {
            Err(PathError::Step { source, .. }) if source.is_absent() => Ok(()),
            other => other,
        }
    }

    fn pass(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        // The IFB stays for the next session: removing a device takes the kernel tens of milliseconds.
        self.undivert(netlink)
    }

    fn remove(&mut self, netlink: &mut Netlink) -> Result<(), PathError> {
        let undiverted = self.undivert(netlink);
        self.remove_ifb(netlink).and(undiverted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(guest: &str, id: &str) -> Mark {
        Mark { guest: guest.into(), id: id.into(), tap: "tap-web".into() }
    }

    #[test]
    fn an_alias_is_read_back_and_others_are_not() {
        let web = mark("web", "net0");
        assert_eq!(Mark::read(&web.alias()), Some(web));
        for other in
            ["", "aventine", "aventine web net0", "aventine web net0 tap more", "my aventine web net0 tap"]
        {
            assert_eq!(Mark::read(other), None, "{other}");
        }
    }

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(mark("web", "net0").name(), "ifb-web-net0");
        let long = [mark("a-guest-with-a-long-name", "net0"), mark("a-guest-with-a-long-name", "net1")];
        assert!(
            long.iter().all(|m| m.name().len() <= NAME && m.name().starts_with("ifb-a-gues-")),
            "{long:?}"
        );
        assert_ne!(long[0].name(), long[1].name());
    }
}
