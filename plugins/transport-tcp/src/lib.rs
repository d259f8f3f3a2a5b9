//! Transport plugin `tcp`: one TCP connection for each channel of a link.
//!
//! ```toml
//! [transport]
//! plugin = "tcp"
//! listen = "0.0.0.0:7400"          # needed on the standby
//! peer = "standby.example:7400"    # needed on the primary; or both hosts' addresses, and each host dials the other's:
//! # peer = ["alpha.example:7400", "beta.example:7400"]
//!
//! [transport.tls]                  # from `aventine keys`; relative to the configuration file
//! ca = "ca.pem"
//! cert = "node.pem"
//! key = "node.key"
//! nodes = ["alpha", "beta"]        # optional: the other side's certificate must carry one of these names
//! ```
//! Without `tls`, `unsafe_plaintext = true` must say that everybody on the wire may read and change everything.
//!
//! Invariants, and how links come to be, are those of [`aventine_transport_common`]; this is its entry.
#![forbid(unsafe_code)]

mod config;

use aventine_api::{ErrorCode, Factory, Link, Listener, PluginEntry, PluginError, Transport, schema};
use aventine_transport_common::Tcp;
use std::time::Duration;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "tcp",
        version: env!("CARGO_PKG_VERSION"),
        summary: "One TCP connection for each channel, with TLS 1.3",
        validate: &|text| config::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Transport(&|text, context| {
            let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Plugin(Tcp::new(settings, &context.config_dir)?)))
        }),
        upkeep: None,
    }
}

struct Plugin(Tcp);

impl Transport for Plugin {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        Ok(Box::new(self.0.connect(limit)?))
    }

    fn listen(&mut self, routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        Ok(Box::new(self.0.listen(routes)?))
    }
}
