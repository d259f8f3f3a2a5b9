//! What this host lacks for the plugin, and what an earlier process left on it.

use crate::detour;
use crate::settings::Settings;
use aventine_api::{ErrorCode, PluginError, Premises};
use aventine_network_kernel::{Claim, Diversion, Netlink, PathError, lacking, redirects};

pub(crate) fn probe(config: &str, _: &Premises) -> Vec<String> {
    lacking(true, |netlink| {
        let Ok(settings) = Settings::parse(config) else { return Ok(()) };
        let tap = detour::find(netlink, &settings.device)?;
        let failed = |e| PathError::at("look at the filters of", &tap.name, None, e);
        match redirects(netlink, tap.index).map_err(failed)?.foreign {
            true => Err(PathError::ForeignFilter { device: tap.name }),
            false => Ok(()),
        }
    })
}

/// All of the guest's IFBs, also of tables that are gone from the configuration.
pub(crate) fn reclaim(config: &str, premises: &Premises) -> Result<Vec<String>, PluginError> {
    let settings = Settings::parse(config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
    let mut netlink = Netlink::open().map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
    let netlink = &mut netlink;
    // Whoever has it now is not gone.
    let _claim = Claim::take(&settings.device).map_err(PathError::Claim)?;
    let mut removed = detour::reclaim(netlink, |mark| mark.guest == premises.guest)?;
    let failed = |e| PathError::at("remove the redirection from", &settings.device, None, e);
    if let Ok(tap) = detour::find(netlink, &settings.device)
        && Diversion::reclaim(netlink, tap.index).map_err(failed)?
    {
        removed.push(format!("a redirection of the frames of {}", settings.device));
    }
    Ok(removed)
}
