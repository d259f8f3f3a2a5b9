//! Transport plugin `rdma`: one-sided writes into the other host's memory.
//!
//! ```toml
//! [plugins]
//! load = ["/usr/lib/aventine/libaventine_transport_rdma.so"]
//!
//! [transport]
//! plugin = "rdma"
//! listen = "10.0.0.2:7400"         # as `tcp` has them; addresses of RDMA devices
//! peer = ["10.0.0.1:7400", "10.0.0.2:7400"]
//! tls = { ca = "ca.pem", cert = "node.pem", key = "node.key" }
//! unsafe_unencrypted_payload = true
//! ```
//! **What RDMA carries is not encrypted.** TLS proves who the other host is and hands over keys and addresses; the guest's memory
//! itself crosses the network as it is. `unsafe_unencrypted_payload = true` must accept that.
//!
//! Invariants:
//! - A stranger on the fabric gets nothing: a queue pair is accepted only with a token that was told inside the mutual TLS of its
//!   channel, and a ring's key is told there alone, once both queue pairs are there.
//! - A channel has queue pairs, rings and completions of its own, one pair for each direction: bulk never waits in front of a
//!   heartbeat, and no lock is shared by who sends and who receives.
//! - Nothing is written that the receiver has no room and no request for (see `ring.rs`).
//! - What is lent to receive in is offered to the other side only while nobody has it; the pages that a batch consists of are
//!   written there from where they were captured (see `lent.rs`).
//! - Memory is given back only after each request that names it, and the queue pair itself, are gone (see `endpoint.rs`).
//! - Whatever waits ends with the link: `abort` wakes it at once, a dead process by its TLS connection, a dead host by the engine's
//!   detection or the device's, whichever is faster.
//!
//! ```text
//!  primary                                                          standby
//!  connect ── TCP, TLS ─────────────────────────────────────────►   listen, accept         as `tcp`
//!  open ───── the channel's TLS connection ─────────────────────►   open
//!      hello, offer, rooms (see `wire.rs`)
//!      pages in lent memory ─► write, with immediate ═══════►  lent memory ─► caller      no copy
//!      all else ─► copy ─► write, with immediate ═══════════►  ring ─► caller             a pair each way
//!               room ◄═══════════════════════════════════ credit, when a quarter is consumed
//!      the TLS connection stays, silent: its end is the end of the channel
//! ```
//! The libraries libibverbs and librdmacm are opened when a plugin is made; nothing links to them.

mod channel;
mod config;
mod connect;
mod endpoint;
mod ffi;
mod lent;
mod library;
mod link;
mod resource;
mod ring;
mod wire;

use aventine_api::{ErrorCode, Factory, Link, Listener, PluginEntry, PluginError, Transport, schema};
use aventine_transport_common::{Tcp, TcpListening};
use library::Libraries;
use link::RdmaLink;
use std::time::Duration;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "rdma",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Queue pairs for each channel; what they carry is not encrypted",
        validate: &|text| config::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Transport(&|text, context| {
            let settings = config::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let libraries = Libraries::get().map_err(|e| PluginError::new(ErrorCode::Unavailable, e))?;
            Ok(Box::new(Rdma { tcp: Tcp::new(settings, &context.config_dir)?, libraries }))
        }),
        upkeep: None,
    }
}

struct Rdma {
    tcp: Tcp,
    libraries: &'static Libraries,
}

impl Transport for Rdma {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        Ok(Box::new(RdmaLink::new(self.tcp.connect(limit)?, self.libraries)))
    }

    fn listen(&mut self, routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        Ok(Box::new(Listening { tcp: self.tcp.listen(routes)?, libraries: self.libraries }))
    }
}

struct Listening {
    tcp: TcpListening,
    libraries: &'static Libraries,
}

impl Listener for Listening {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let link = self.tcp.accept_link(limit)?;
        Ok(link.map(|tcp| Box::new(RdmaLink::new(tcp, self.libraries)) as Box<dyn Link>))
    }
}
