//! What the plugin needs of a host, and what a killed controller leaves on it.

use crate::config;
use crate::resource::{Kernel, Resource, ResourceError, check_connection};
use crate::state::{Contents, Role};
use aventine_api::{ErrorCode, PluginError, Premises};

pub(crate) fn probe(text: &str, _: &Premises) -> Vec<String> {
    let Ok(settings) = config::parse(text) else { return Vec::new() };
    match Kernel::find(&settings.resource) {
        Ok(resource) => problems(&resource),
        Err(error) => vec![chain(error)],
    }
}

/// What keeps the resource from being either side's disk.
pub(crate) fn problems(resource: &dyn Resource) -> Vec<String> {
    let state = match resource.state() {
        Ok(state) => state,
        Err(error) => return vec![chain(error)],
    };
    let name = || resource.name().to_owned();
    let disk = match state.contents {
        Contents::None => Some(ResourceError::Diskless(name())),
        Contents::Inconsistent if !state.word.starts_with("Sync") => {
            Some(ResourceError::Inconsistent(name()))
        }
        _ => None,
    };
    [check_connection(resource, &state).err(), disk].into_iter().flatten().map(chain).collect()
}

/// A controller that is killed closes the device and leaves the resource Primary, which keeps the other host from being it.
/// Taking the role back is safe: it changes no data, and the kernel refuses it while anybody has the device open.
pub(crate) fn reclaim(text: &str, _: &Premises) -> Result<Vec<String>, PluginError> {
    let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
    Ok(demote(&Kernel::find(&settings.resource)?)?)
}

pub(crate) fn demote(resource: &dyn Resource) -> Result<Vec<String>, ResourceError> {
    match resource.state() {
        Ok(state) if state.role == Role::Primary => {}
        Ok(_) | Err(ResourceError::Down(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    match resource.demote() {
        Ok(()) => Ok(vec![format!("the role Primary of resource {}", resource.name())]),
        // Somebody uses it, who is not gone.
        Err(ResourceError::Command { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn chain(error: ResourceError) -> String {
    PluginError::from(error).chain()
}
