//! Disks: what replication costs a guest's reads and writes, and what a seal adds to its pause.
//!
//! ```text
//!  replicated:  client ══ NBD, unix socket ══► export ─► plugin ─► image
//!                                                          └══ frames, loopback TCP ══► standby's disk, in this process
//!  export:      client ══ NBD, unix socket ══► export ─► image
//!  qemu-nbd:    client ══ NBD, unix socket ══► qemu-nbd ─► image
//! ```
//! They are measured in turn, and the best of each counts: what disturbs a machine makes figures worse, never better. A replicated
//! write counts when its epoch is committed. The standby's work takes the processors of the same machine here.

mod channel;
mod client;
mod pair;
mod servers;

use crate::quantiles;
use aventine_api::{BlockDevice, PluginError};
use aventine_export::{Export, ExportError};
use client::Client;
pub use client::ClientError;
use client::Load;
use pair::Pair;
use serde::Serialize;
use servers::{QemuNbd, Raw};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the servers take turns.
const TURNS: u32 = 5;
/// Epochs whose pause is timed, and writes in each.
const SEALS: usize = 400;
const WRITES: u64 = 100;

const LOADS: [Load; 8] = [
    load("random write 4 KiB", true, true, 1),
    load("random write 4 KiB", true, true, 32),
    load("sequential write 1 MiB", true, false, 1),
    load("sequential write 1 MiB", true, false, 32),
    load("random read 4 KiB", false, true, 1),
    load("random read 4 KiB", false, true, 32),
    load("sequential read 1 MiB", false, false, 1),
    load("sequential read 1 MiB", false, false, 32),
];

const fn load(name: &'static str, write: bool, random: bool, depth: u64) -> Load {
    Load { name, write, random, block: if random { 4 << 10 } else { 1 << 20 }, depth }
}

/// Why a disk was not measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No such plugin.
    #[error("There is no disk plugin {0}; there are {1}")]
    Unknown(String, String),
    /// The plugin.
    #[error("Plugin {0} failed while {1}")]
    Plugin(String, &'static str, #[source] PluginError),
    /// The plugin does nothing.
    #[error("Plugin {0} is silent: the standby hears nothing {1} for a minute")]
    Silent(String, &'static str),
    /// No place for the images.
    #[error("Cannot make an image in a temporary directory; TMPDIR names another one")]
    Directory(#[source] io::Error),
    /// No connection between the two sides.
    #[error("Cannot connect to this machine itself")]
    Channel(#[source] io::Error),
    /// The front-end.
    #[error("The disk cannot be exported")]
    Export(#[from] ExportError),
    /// The other server.
    #[error("qemu-nbd does not serve")]
    QemuNbd(#[source] io::Error),
    /// The client.
    #[error("{0} did not serve the client")]
    Client(&'static str, #[source] ClientError),
    /// The thread that measures.
    #[error("Measuring panicked")]
    Panicked,
}

/// What a disk costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The plugin.
    pub plugin: String,
    /// Time of `pausing` and `seal` of an epoch of 100 writes, in microseconds: median and 99 %.
    pub seal_us: [f64; 2],
    /// Payload bytes sent to the standby for each byte written.
    pub sent_per_written: f64,
    /// Requests a second.
    pub loads: Vec<LoadFigures>,
}

/// Requests a second of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct LoadFigures {
    /// Reads or writes, where, of how much.
    pub load: &'static str,
    /// How many are under way.
    pub depth: u64,
    /// A second, replicated.
    pub replicated: f64,
    /// A second, of the image through the same front-end.
    pub export: f64,
    /// A second, of the image through qemu-nbd; `None` where that is not installed.
    pub qemu_nbd: Option<f64>,
    /// `replicated` ÷ `export`.
    pub ratio: f64,
    /// `replicated` ÷ `qemu_nbd`.
    pub ratio_to_qemu_nbd: Option<f64>,
}

/// Measures a plugin on images of `size` bytes in a temporary directory, each load on each server for `time` in all. Blocks; any
/// user may.
pub fn measure(plugin: &str, size: u64, time: Duration) -> Result<Figures, BenchError> {
    let dir = tempfile::tempdir().map_err(BenchError::Directory)?;
    let mut bench = Bench::start(plugin, dir.path(), size)?;
    let seal_us = bench.seals()?;
    let mut loads = Vec::new();
    for load in LOADS {
        loads.push(bench.load(load, time / TURNS)?);
    }
    Ok(Figures { plugin: plugin.to_owned(), seal_us, sent_per_written: bench.sent_per_written, loads })
}

// Dropped in this order: clients before servers, the exports before their devices.
struct Bench {
    replicated: Client,
    export: Client,
    qemu_nbd: Option<Client>,
    _exports: [Export; 2],
    pair: Pair,
    _qemu_nbd: Option<QemuNbd>,
    sent_per_written: f64,
}

impl Bench {
    fn start(plugin: &str, dir: &Path, size: u64) -> Result<Bench, BenchError> {
        for name in ["primary", "raw", "qemu"] {
            make_image(&dir.join(name), size).map_err(BenchError::Directory)?;
        }
        let [ours, raw] = ["primary.sock", "raw.sock"].map(|name| dir.join(name));
        let (server, qemu_nbd) = QemuNbd::start(dir, size)?.unzip();
        let pair = Pair::start(plugin, dir)?;
        let file = OpenOptions::new().read(true).write(true).open(dir.join("raw/disk.img"));
        let device = Raw { file: file.map_err(BenchError::Directory)?, size };
        let exports = [
            Export::start(&ours, "disk0", pair.device())?,
            Export::start(&raw, "disk0", Arc::new(device) as Arc<dyn BlockDevice>)?,
        ];
        let connect = |name, socket| Client::connect(socket, size).map_err(|e| BenchError::Client(name, e));
        Ok(Bench {
            replicated: connect(REPLICATED, &ours)?,
            export: connect(EXPORT, &raw)?,
            qemu_nbd,
            _exports: exports,
            pair,
            _qemu_nbd: server,
            sent_per_written: 0.0,
        })
    }

    /// What the pause of an epoch has of the disk: the guest's requests are answered, none comes meanwhile.
    fn seals(&mut self) -> Result<[f64; 2], BenchError> {
        let (mut times, before) = (Vec::new(), self.pair.stats());
        for _ in 0..SEALS {
            let written = self.replicated.run(LOADS[1], Duration::ZERO, WRITES);
            written.map_err(|e| BenchError::Client(REPLICATED, e))?;
            times.push(self.pair.seal()?);
            self.pair.commit()?;
        }
        self.pair.settle()?;
        let after = self.pair.stats();
        let written = (after.written_bytes - before.written_bytes).max(1);
        self.sent_per_written = (after.replicated_bytes - before.replicated_bytes) as f64 / written as f64;
        Ok(quantiles(times))
    }

    fn load(&mut self, load: Load, time: Duration) -> Result<LoadFigures, BenchError> {
        let (mut replicated, mut export, mut qemu_nbd) = (0.0, 0.0, None);
        for _ in 0..TURNS {
            export = f64::max(export, alone(&mut self.export, load, time, EXPORT)?);
            let client = &mut self.replicated;
            let (sent, took) = self.pair.under(|| client.run(load, time, 1))?;
            let sent = sent.map_err(|e| BenchError::Client(REPLICATED, e))?;
            replicated = f64::max(replicated, sent as f64 / took.as_secs_f64());
            if let Some(client) = &mut self.qemu_nbd {
                let rate = alone(client, load, time, QEMU_NBD)?;
                qemu_nbd = Some(f64::max(qemu_nbd.unwrap_or(0.0), rate));
            }
        }
        Ok(LoadFigures {
            load: load.name,
            depth: load.depth,
            replicated,
            export,
            qemu_nbd,
            ratio: replicated / export,
            ratio_to_qemu_nbd: qemu_nbd.map(|rate| replicated / rate),
        })
    }
}

const REPLICATED: &str = "The replicated disk";
const EXPORT: &str = "The export";
const QEMU_NBD: &str = "qemu-nbd";

/// Requests a second of a server without replication.
fn alone(client: &mut Client, load: Load, time: Duration, server: &'static str) -> Result<f64, BenchError> {
    let began = Instant::now();
    let sent = client.run(load, time, 1).map_err(|e| BenchError::Client(server, e))?;
    Ok(sent as f64 / began.elapsed().as_secs_f64())
}

/// An image without holes.
fn make_image(dir: &Path, size: u64) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut file = File::create(dir.join("disk.img"))?;
    let block: Vec<u8> = (0..1_u32 << 20).map(|i| (i % 253) as u8).collect();
    let mut left = size;
    while left > 0 {
        let piece = left.min(block.len() as u64);
        file.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}
