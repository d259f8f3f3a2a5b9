//! `aventine check --environment`: what this host lacks for a configuration.

use crate::exit::Exit;
use crate::output::print;
use aventine_api::Premises;
use aventine_config::Config;

/// Asks each plugin that needs something of the host. Nothing is started.
pub(crate) fn check(config: &Config) -> Exit {
    let mut lacking = Vec::new();
    for (_, instance) in config.plugins() {
        let Some(upkeep) = instance.entry.upkeep else { continue };
        let premises =
            Premises { guest: config.name.clone(), id: instance.id.clone(), config_dir: config.dir.clone() };
        let found = (upkeep.probe)(&instance.config, &premises);
        lacking.extend(found.into_iter().map(|what| format!("  {}: {what}", instance.id)));
    }
    if lacking.is_empty() {
        print("this host has what its plugins can tell that they need");
        return Exit::Done;
    }
    print(format_args!("this host lacks:\n{}", lacking.join("\n")));
    Exit::Error
}
