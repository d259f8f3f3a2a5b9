//! Transport plugin `tcp`: a TCP connection for each channel of a link, or several.
//!
//! ```toml
//! [transport]
//! plugin = "tcp"
//! listen = "0.0.0.0:7400"          # needed on the standby
//! peer = "standby.example:7400"    # needed on the primary; or both hosts' addresses, and each host dials the other's:
//! # peer = ["alpha.example:7400", "beta.example:7400"]
//!
//! streams = 2                      # connections of each bulk channel, 1 to 16; 1 if not set
//! bandwidth = "100MiB/s"           # most that this host sends in bulk; no limit if not set
//! priority = 1                     # of bulk's packets, 0 to 5; unmarked if not set
//! source = "192.0.2.6"             # this host's end of its connections to `peer`; the system chooses if not set
//!
//! [transport.tls]                  # from `aventine keys`; relative to the configuration file
//! ca = "ca.pem"
//! cert = "node.pem"
//! key = "node.key"
//! nodes = ["alpha", "beta"]        # optional: the other side's certificate must carry one of these names
//! ```
//! Bulk is every channel but `control`: guest memory, disks, networks. Control has one connection, which nothing limits.
//!
//! - `streams`: the smaller number of both hosts counts. One connection keeps one processor of each side busy; several are worth it
//!   where encryption is slower than the wire and processors are free, or where one connection does not fill the wire.
//! - `bandwidth`: what the two hosts' bulk channels send, each host's together, before encryption; TLS and headers add some 2 %.
//! - `priority`: `SO_PRIORITY` for this host's queueing disciplines, and the DSCP class selector of the same number (`CS0` to `CS5`)
//!   for the network's. Control is then 6 and `CS6`, and thus before bulk. Without the key nothing is marked but control's
//!   `SO_PRIORITY`, 6: the kernel's default discipline sends it first.
//! - `source`: of the family of the peer's addresses; those of the other are passed over.
//!
//! `aventine status` shows `send_cpu_us_per_gib` and `recv_cpu_us_per_gib`: the processor time of this host's threads, the kernel's
//! work for them included, for each GiB of pieces of 64 KiB and more, since the plugin was made.
//!
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
        summary: "TCP connections for each channel, with TLS 1.3",
        validate: &|text| config::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Transport(&|text, context| {
            let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Plugin(Tcp::new(settings, &context.config_dir)?.metered(&*context.host))))
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
