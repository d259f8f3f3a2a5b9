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
//! Invariants:
//! - A connection carries one channel, so bulk waits in its own socket and never in front of a heartbeat.
//! - A connection becomes a channel only after its greeting was read and answered (see `wire.rs`); until then it can
//!   neither block nor end anything but itself.
//! - With `tls`, greeting and answer stand inside TLS 1.3 and each side has checked the other's certificate before it
//!   reads a byte of them (see `tls.rs`).
//! - No byte of a channel is handed out before its owner asks for it: the greeting is read to its last byte and not
//!   further.
//! - After [`aventine_api::LinkAbort::abort`] no call on the link's channels reports success.
//!
//! ```text
//!  primary                                        standby
//!  connect ──── TCP, greeting `control` ────────► door: reads greetings, one thread for all strangers
//!          ◄─── welcome ─────────────────────────   │ new link ─► hall ─► accept
//!  open(name) ─ TCP, greeting, same link id ─────►  │ known link ─► waits there for open(name)
//!          ◄─── welcome ─────────────────────────
//! ```
//! The welcome comes from the door, not from the other side's `open`: the two sides may exchange messages between
//! two calls of `open`. Bytes sent before the standby opened the channel wait in its socket.
#![forbid(unsafe_code)]

mod channel;
mod config;
mod conn;
mod dial;
mod door;
mod fault;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod hall;
mod link;
mod own;
mod tls;
mod wire;

use aventine_api::{ErrorCode, Factory, Link, Listener, PluginEntry, PluginError, Transport, schema};
use config::{Address, Settings};
use conn::Security;
use std::time::{Duration, Instant};
use tls::Tls;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "tcp",
        version: env!("CARGO_PKG_VERSION"),
        summary: "One TCP connection for each channel, with TLS 1.3",
        validate: &|text| Settings::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Transport(&|text, context| {
            let settings = Settings::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let security = match &settings.tls {
                Some(files) => Security::Tls(
                    Tls::load(files, &context.config_dir)
                        .map_err(|e| PluginError::new(ErrorCode::Config, e))?,
                ),
                None => Security::Plaintext,
            };
            Ok(Box::new(Tcp { settings, security }))
        }),
        upkeep: None,
    }
}

struct Tcp {
    settings: Settings,
    security: Security,
}

impl Transport for Tcp {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        if self.settings.peers.is_empty() {
            return Err(PluginError::new(ErrorCode::Config, NoPeer));
        }
        Ok(Box::new(link::TcpLink::connect(&self.settings, Instant::now() + limit, limit, &self.security)?))
    }

    fn listen(&mut self, routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        let listen = self.settings.listen.ok_or(ListenError::NoAddress)?;
        let mut addresses = vec![listen];
        for route in routes {
            let route: Address = route
                .parse()
                .map_err(|source| ListenError::Route { route: route.clone(), source })
                .map_err(PluginError::from)?;
            addresses.push((listen.ip(), route.port).into());
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Box::new(door::TcpListening::start(&addresses, self.security.clone())?))
    }
}

/// Connecting without an address.
#[derive(Debug, thiserror::Error)]
#[error("The primary needs `peer` in [transport], the standby's address such as \"standby.example:7400\"")]
struct NoPeer;

/// Why listening could not begin or go on.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("The standby needs `listen` in [transport], an address of this host such as \"0.0.0.0:7400\"")]
    NoAddress,
    #[error("The route {route:?} of a disk is no address")]
    Route { route: String, source: config::AddressError },
    #[error("Port {} is in use at {}; is another `aventine standby` running here?", .0.port(), .0.ip())]
    InUse(std::net::SocketAddr),
    #[error("{} is no address of this host; use one that `ip address` shows, or 0.0.0.0", .0.ip())]
    NotHere(std::net::SocketAddr),
    #[error("Could not listen on {address}")]
    Bind { address: std::net::SocketAddr, source: std::io::Error },
    #[error("Could not start to listen")]
    Start(#[source] std::io::Error),
    #[error("Listening ended")]
    Ended(#[source] std::io::Error),
}

impl From<ListenError> for PluginError {
    fn from(error: ListenError) -> PluginError {
        let code = match &error {
            ListenError::NoAddress | ListenError::Route { .. } => ErrorCode::Config,
            ListenError::InUse(_) | ListenError::NotHere(_) => ErrorCode::Unavailable,
            ListenError::Bind { .. } | ListenError::Start(_) | ListenError::Ended(_) => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}
