//! Links over TCP with TLS, with a connection for each channel: all of transport `tcp` but its entry, and what transport `rdma`
//! authenticates with.
//!
//! Invariants:
//! - A connection carries one channel, so bulk waits in its own socket and never in front of a heartbeat. Every channel but
//!   `control` may have several connections (see `stripe.rs`), each greeted and authenticated on its own.
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
//!          ◄─── welcome: n connections ──────────
//!             ─ TCP, greeting, 2 of n … n of n ─►
//! ```
//! Which addresses, and when again: a name's addresses are tried in the resolver's order, each for its share of what is left of an
//! attempt's two seconds: of two, a dead first one costs a second. A refusal costs nothing. After an attempt the names are resolved
//! anew, 50 ms later, until the caller's limit. A link that ended is not mended here: the engine makes a new one.
//!
//! The welcome comes from the door, not from the other side's `open`: the two sides may exchange messages between
//! two calls of `open`. Bytes sent before the standby opened the channel wait in its socket.
#![deny(unsafe_code)]

mod channel;
mod config;
mod conn;
mod crew;
mod dial;
mod door;
mod fault;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod hall;
mod link;
mod own;
mod state;
mod stripe;
mod tls;
mod traffic;
mod wire;

pub use channel::{CONTROL, Rx, Tx};
pub use config::{Address, AddressError, Peers, Settings, TlsKeys};
pub use conn::Security;
pub use door::TcpListening;
pub use link::TcpLink;
pub use state::LinkState;
pub use tls::{Tls, TlsFiles};
pub use traffic::Options;
pub use wire::MAX_STREAMS;

use aventine_api::{ErrorCode, Host, PluginError};
use std::path::Path;
use std::time::Duration;
use traffic::{Meters, Traffic};

/// Both roles of one host.
pub struct Tcp {
    settings: Settings,
    security: Security,
    traffic: Traffic,
}

impl Tcp {
    /// Reads the certificates, if there are any; relative paths are meant from `dir`.
    pub fn new(settings: Settings, dir: &Path) -> Result<Tcp, PluginError> {
        let security = match &settings.tls {
            Some(files) => Security::Tls(
                Tls::load(files, dir).map_err(|error| PluginError::new(ErrorCode::Config, error))?,
            ),
            None => Security::Plaintext,
        };
        let traffic = Traffic::new(settings.options.clone());
        Ok(Tcp { settings, security, traffic })
    }

    /// Shows at `host` what sending and receiving cost.
    #[must_use]
    pub fn metered(mut self, host: &dyn Host) -> Tcp {
        self.traffic.meters = Meters::new(host);
        self
    }

    /// As [`aventine_api::Transport::connect`].
    pub fn connect(&self, limit: Duration) -> Result<TcpLink, PluginError> {
        if self.settings.peers.is_empty() {
            return Err(PluginError::new(ErrorCode::Config, NoPeer));
        }
        Ok(TcpLink::connect(&self.settings, limit, &self.security, &self.traffic)?)
    }

    /// As [`aventine_api::Transport::listen`].
    pub fn listen(&self, routes: &[String]) -> Result<TcpListening, PluginError> {
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
        Ok(TcpListening::start(&addresses, self.security.clone(), self.traffic.clone())?)
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
    Route { route: String, source: AddressError },
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
