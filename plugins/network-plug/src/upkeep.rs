//! What this host lacks for the plugin, and what an earlier process left on it.

use crate::egress;
use crate::settings::Settings;
use aventine_api::{ErrorCode, PluginError, Premises};
use aventine_network_kernel::{Claim, Netlink, PathError, lacking};

pub(crate) fn probe(config: &str, _: &Premises) -> Vec<String> {
    lacking(false, |netlink| {
        let Ok(settings) = Settings::parse(config) else { return Ok(()) };
        let (_, device) = egress::find(netlink, &settings)?;
        egress::check(netlink, &device)
    })
}

pub(crate) fn reclaim(config: &str, _: &Premises) -> Result<Vec<String>, PluginError> {
    let settings = Settings::parse(config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
    let mut netlink = Netlink::open().map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
    // A device that is gone has taken its plug along.
    let Ok((_, device)) = egress::find(&mut netlink, &settings) else { return Ok(Vec::new()) };
    // Whoever has it now is not gone.
    let _claim = Claim::take(&device.name).map_err(PathError::Claim)?;
    let removed = egress::reclaim(&mut netlink, &device)?;
    Ok(removed.then(|| format!("a plug from {}", device.name)).into_iter().collect())
}
