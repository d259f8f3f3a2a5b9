//! Transports: how many pages a second, how long a checkpoint's way there and its acknowledgement's back, and what processor
//! time it takes.
//!
//! ```text
//!  plugin:  pages ─► ChannelTx ═══ loopback ═══► ChannelRx ─► staging          bulk: one channel with `streams`, or several
//!                    ChannelRx ◄══ loopback ════ ChannelTx ◄─ acknowledgement  control
//!  floor:   the same over a bare TCP connection; with TLS also over one that rustls alone encrypts
//! ```
//! A plugin with the key `streams` has one bulk channel, and counts the processor time of its threads itself; of another one each
//! stream is a channel. The floors have a connection and two threads for each stream.
//!
//! Pages do not compress, and lie scattered as a capture finds them. The ways are measured in turn, and the best of each counts:
//! what disturbs a machine makes figures worse, never better. Both ends share the machine here.

mod load;
mod meters;
mod svg;
mod ways;

use crate::transport::load::Load;
use crate::transport::ways::Way;
use aventine_api::PluginError;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How often the ways take turns.
const TURNS: u32 = 5;
/// Checkpoints of a round trip, in pages, and how many of each.
const CHECKPOINTS: [(usize, usize); 3] = [(1, 2000), (100, 1000), (10_000, 40)];

/// Why a transport was not measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No such plugin.
    #[error("There is no transport plugin {0}; there are {1}")]
    Unknown(String, String),
    /// The plugin.
    #[error("Plugin {0} failed while {1}")]
    Plugin(String, &'static str, #[source] PluginError),
    /// Nobody can be reached.
    #[error("{0} could not connect to this machine itself")]
    Connect(&'static str, #[source] io::Error),
    /// A connection that was measured broke.
    #[error("{0} broke while it was measured")]
    Broken(&'static str, #[source] PluginError),
    /// The certificates are not what rustls takes.
    #[error("rustls cannot use the certificates")]
    Tls(#[source] rustls::Error),
    /// The certificates are not there.
    #[error("Cannot read {}", .0.display())]
    Pem(PathBuf, #[source] rustls_pki_types::pem::Error),
    /// A thread that measures.
    #[error("A thread that measures panicked")]
    Panicked,
}

/// The files of TLS: a CA, and a certificate with its key for the node `bench`.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The node's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The plugin; it has the keys `listen`, `peer`, and `tls` or `unsafe_plaintext`.
    pub plugin: String,
    /// `None`: plaintext.
    pub keys: Option<Keys>,
    /// The plugin's own `streams`; where it has no such key, bulk channels that are used at the same time.
    pub streams: usize,
    /// Bytes of pages that are sent each time.
    pub bytes: u64,
}

/// One way of sending pages.
#[derive(Clone, Debug, Serialize)]
pub struct WayFigures {
    /// `plugin`, `bare TCP` or `rustls`.
    pub way: &'static str,
    /// MiB of pages a second.
    pub goodput_mib: f64,
    /// Seconds of processor time that the sending threads take for each GiB; with a plugin's own streams as it counts them.
    pub sending_s_per_gib: f64,
    /// And the receiving ones.
    pub receiving_s_per_gib: f64,
    /// Checkpoints there and acknowledgements back.
    pub round_trips: Vec<RoundTrip>,
}

/// Checkpoints of one size.
#[derive(Clone, Debug, Serialize)]
pub struct RoundTrip {
    /// Pages of 4 KiB.
    pub pages: usize,
    /// From the first byte sent to the acknowledgement received, in microseconds: median and 99 %.
    pub us: [f64; 2],
}

/// What a transport costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The plugin.
    pub plugin: String,
    /// Whether it encrypts.
    pub tls: bool,
    /// Of the plugin, or bulk channels.
    pub streams: usize,
    /// The plugin, then what it is compared with: bare TCP, and with TLS what rustls alone does.
    pub ways: Vec<WayFigures>,
    /// The plugin's goodput ÷ that of the last way.
    pub ratio: f64,
    /// Its median round trip ÷ that of the last way, for each size of checkpoint.
    pub round_trip_ratios: Vec<f64>,
}

/// Measures a transport on the loopback interface. Blocks; any user may.
pub fn measure(setup: &Setup) -> Result<Figures, BenchError> {
    let load = Load::new(setup.bytes);
    let mut ways = vec![Way::plugin(setup)?, Way::bare(setup.streams)?];
    if let Some(keys) = &setup.keys {
        ways.push(Way::rustls(setup.streams, keys)?);
    }
    let mut figures: Vec<_> = ways.iter().map(|way| WayFigures::new(way.name)).collect();
    for _ in 0..TURNS {
        for (way, figures) in ways.iter_mut().zip(&mut figures) {
            figures.take(&load.goodput(way)?);
        }
    }
    for (pages, count) in CHECKPOINTS {
        // In turn, too: a machine that gets slower does so for all of them.
        let mut times = vec![Vec::new(); ways.len()];
        for _ in 0..TURNS {
            for (way, times) in ways.iter_mut().zip(&mut times) {
                times.extend(load.round_trips(way, pages, count / TURNS as usize)?);
            }
        }
        for (figures, times) in figures.iter_mut().zip(times) {
            figures.round_trips.push(RoundTrip { pages, us: crate::quantiles(times) });
        }
    }
    Ok(Figures::of(setup, figures))
}

/// What one transfer took.
struct Transfer {
    bytes: u64,
    took: Duration,
    /// Processor time of all threads of a side.
    sending: Duration,
    receiving: Duration,
}

impl WayFigures {
    fn new(way: &'static str) -> WayFigures {
        let (sending_s_per_gib, receiving_s_per_gib) = (f64::INFINITY, f64::INFINITY);
        WayFigures { way, goodput_mib: 0.0, sending_s_per_gib, receiving_s_per_gib, round_trips: Vec::new() }
    }

    fn take(&mut self, transfer: &Transfer) {
        let gib = transfer.bytes as f64 / f64::from(1 << 30);
        self.goodput_mib = self.goodput_mib.max(gib * 1024.0 / transfer.took.as_secs_f64());
        self.sending_s_per_gib = self.sending_s_per_gib.min(transfer.sending.as_secs_f64() / gib);
        self.receiving_s_per_gib = self.receiving_s_per_gib.min(transfer.receiving.as_secs_f64() / gib);
    }
}

impl Figures {
    fn of(setup: &Setup, ways: Vec<WayFigures>) -> Figures {
        let (plugin, floor) = (&ways[0], &ways[ways.len() - 1]);
        let pairs = plugin.round_trips.iter().zip(&floor.round_trips);
        let round_trip_ratios = pairs.map(|(ours, theirs)| ours.us[0] / theirs.us[0]).collect();
        Figures {
            plugin: setup.plugin.clone(),
            tls: setup.keys.is_some(),
            streams: setup.streams,
            ratio: plugin.goodput_mib / floor.goodput_mib,
            round_trip_ratios,
            ways,
        }
    }
}
