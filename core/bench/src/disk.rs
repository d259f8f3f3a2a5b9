//! Disks: what replication costs a guest's reads and writes, and what a seal adds to its pause.
//!
//! ```text
//!  replicated:  client ══ front-end ══► plugin ─┬─► image
//!                                               └══ frames, loopback TCP ══► standby's disk, in this process
//!  export:      client ══ front-end ══► image
//!  copy:        client ══ front-end ─┬─► image
//!                                    └══ bare bytes, loopback TCP ══► image where the standby's is
//!  qemu-nbd:    client ══ NBD ══► qemu-nbd ─► image
//! ```
//! They are measured in turn, through each front-end, and the best of each counts: what disturbs a machine makes figures worse, never
//! better. A replicated write counts when its epoch is committed, a copied one when the other side has written it. All images are read
//! and written the same way: past the page cache, or through it. The standby's work takes the processors of the same machine here, and
//! where its image is on the same disk, half of that; so the processor time of each side is told, too.
//!
//! A disk may write faster than one connection carries. The export alone is then a floor that no replication can reach; the bare copy
//! (`copy`) is the one that has the link in it.

mod channel;
mod client;
mod copy;
mod cpu;
mod nbd;
mod pair;
mod servers;
mod vhost;

use crate::quantiles;
use aventine_api::{BlockDevice, PluginError};
use aventine_disk_common::image::{Image, OpenError};
use aventine_export::ExportError;
use aventine_export_vhost::VhostExportError;
use client::Client;
pub use client::ClientError;
use client::Load;
use copy::Copied;
use cpu::Cpu;
use pair::Pair;
use serde::Serialize;
use servers::{QemuNbd, Raw, serve};
use std::any::Any;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir, tempdir_in};

/// How often the servers take turns.
const TURNS: u32 = 5;
/// The servers: names of their directories and sockets, and where they have threads here, parts of their names.
const PRIMARY: &str = cpu::PRIMARY;
const EXPORT: &str = cpu::EXPORT;
const COPY: &str = "copy";
const QEMU_NBD: &str = "qemu";
/// An image's file.
const IMAGE: &str = "disk.img";
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
    /// No place for the standby's.
    #[error("Cannot make the standby's image in {}", .0.display())]
    StandbyDirectory(PathBuf, #[source] io::Error),
    /// The image to compare with.
    #[error("The image without replication cannot be opened")]
    Image(#[from] OpenError),
    /// The system does not tell.
    #[error("The processor time of threads cannot be read")]
    Cpu(#[source] io::Error),
    /// No connection between the two sides.
    #[error("Cannot connect to this machine itself")]
    Channel(#[source] io::Error),
    /// The front-end.
    #[error("The disk cannot be exported")]
    Export(#[from] ExportError),
    /// The other front-end.
    #[error("The disk cannot be exported by vhost-user")]
    VhostExport(#[from] VhostExportError),
    /// What writes are copied by.
    #[error("The bare copy failed")]
    Copy(#[source] PluginError),
    /// The other server.
    #[error("qemu-nbd does not serve")]
    QemuNbd(#[source] io::Error),
    /// The client.
    #[error("The server `{0}` did not serve the client")]
    Client(&'static str, #[source] ClientError),
    /// No thread.
    #[error("A thread could not be started")]
    Thread(#[source] io::Error),
    /// The thread that measures.
    #[error("Measuring panicked")]
    Panicked,
}

/// How the client reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frontend {
    /// By NBD.
    Nbd,
    /// By vhost-user-blk.
    VhostUser,
}

impl Frontend {
    /// As a configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Frontend::Nbd => "nbd",
            Frontend::VhostUser => "vhost-user",
        }
    }
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the disk.
    pub size: u64,
    /// For each load on each server, in all.
    pub time: Duration,
    /// Which front-ends: one or more.
    pub frontends: Vec<Frontend>,
    /// Through the page cache, where it could be past it.
    pub cached: bool,
    /// Where the standby's image is, if not where the others are.
    pub standby: Option<PathBuf>,
}

/// What a disk costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The plugin.
    pub plugin: String,
    /// Where the images are.
    pub directory: PathBuf,
    /// Where the standby's image is.
    pub standby_directory: PathBuf,
    /// Whether whole blocks of the images go past the page cache; a file system in memory has none.
    pub direct: bool,
    /// Processors that both sides, the client and the servers share.
    pub processors: usize,
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
    /// How the client reaches the disk.
    pub frontend: Frontend,
    /// Reads or writes, where, of how much.
    pub load: &'static str,
    /// How many are under way.
    pub depth: u64,
    /// A second, replicated.
    pub replicated: f64,
    /// A second, of the image through the same front-end.
    pub export: f64,
    /// A second, of the image through the same front-end with a bare copy of what is written; `None` for reads.
    pub copy: Option<f64>,
    /// A second, of the image through qemu-nbd; `None` where that is not installed, and of other front-ends than NBD.
    pub qemu_nbd: Option<f64>,
    /// `replicated` ÷ `export`.
    pub ratio: f64,
    /// `replicated` ÷ `copy`.
    pub ratio_to_copy: Option<f64>,
    /// `replicated` ÷ `qemu_nbd`.
    pub ratio_to_qemu_nbd: Option<f64>,
    /// Processor time in microseconds for each MiB, without the client's and the kernel's own threads: of the export.
    pub export_us_per_mib: f64,
    /// Of the replicated disk's export and its plugin on the primary.
    pub primary_us_per_mib: f64,
    /// Of the plugin on the standby, receiving and applying.
    pub standby_us_per_mib: f64,
}

/// Whether [`measure`] can make disks of a plugin.
pub fn takes_image(plugin: &str) -> bool {
    pair::takes_image(plugin)
}

/// Measures a plugin on images in temporary directories. Blocks; any user may.
pub fn measure(plugin: &str, options: &Options) -> Result<Figures, BenchError> {
    let dir = tempdir().map_err(BenchError::Directory)?;
    let standby = match &options.standby {
        Some(path) => Some(tempdir_in(path).map_err(|e| BenchError::StandbyDirectory(path.clone(), e))?),
        None => None,
    };
    let standby = standby.as_ref().map_or(dir.path(), TempDir::path);
    let mut bench = Bench::start(plugin, dir.path(), standby, options)?;
    let time = options.time;
    let seal_us = bench.seals()?;
    let mut loads = Vec::new();
    for way in 0..bench.ways.len() {
        for load in LOADS {
            loads.push(bench.load(way, load, time / TURNS)?);
        }
    }
    Ok(Figures {
        plugin: plugin.to_owned(),
        directory: dir.path().parent().unwrap_or(dir.path()).to_owned(),
        standby_directory: standby.parent().unwrap_or(standby).to_owned(),
        direct: bench.direct,
        processors: available_parallelism().map_or(1, usize::from),
        seal_us,
        sent_per_written: bench.sent_per_written,
        loads,
    })
}

/// The servers through one front-end. Dropped in this order: clients before servers.
struct Way {
    frontend: Frontend,
    replicated: Client,
    export: Client,
    copy: Client,
    qemu_nbd: Option<Client>,
    _fronts: [Box<dyn Any>; 3],
}

// The front-ends before their devices.
struct Bench {
    ways: Vec<Way>,
    pair: Pair,
    copied: Arc<Copied>,
    _qemu_nbd: Option<QemuNbd>,
    direct: bool,
    sent_per_written: f64,
}

impl Bench {
    fn start(plugin: &str, dir: &Path, standby: &Path, options: &Options) -> Result<Bench, BenchError> {
        let Options { size, cached, .. } = *options;
        for name in [PRIMARY, EXPORT, COPY, QEMU_NBD] {
            make_image(&dir.join(name), size).map_err(BenchError::Directory)?;
        }
        let copies = standby.join("copies");
        make_image(&copies, size).map_err(BenchError::Directory)?;
        let open = |dir: &Path| {
            let image = Image::open(&dir.join(IMAGE))?;
            Ok::<_, OpenError>(if cached { image } else { image.direct() })
        };
        let image = open(&dir.join(EXPORT))?;
        let direct = image.is_direct();
        let raw: Arc<dyn BlockDevice> = Arc::new(Raw(image));
        let copied = Arc::new(Copied::start(open(&dir.join(COPY))?, open(&copies)?)?);
        let pair = Pair::start(plugin, dir, standby, cached)?;
        let (mut ways, mut qemu_nbd) = (Vec::new(), None);
        for &frontend in &options.frontends {
            let copying = Arc::clone(&copied) as Arc<dyn BlockDevice>;
            let (ours, replicated) = serve(frontend, dir, PRIMARY, pair.device())?;
            let (alone, export) = serve(frontend, dir, EXPORT, Arc::clone(&raw))?;
            let (bare, copy) = serve(frontend, dir, COPY, copying)?;
            let mut other = None;
            if frontend == Frontend::Nbd {
                (qemu_nbd, other) = QemuNbd::start(dir, size, direct)?.unzip();
            }
            let fronts = [ours, alone, bare];
            ways.push(Way { frontend, replicated, export, copy, qemu_nbd: other, _fronts: fronts });
        }
        Ok(Bench { ways, pair, copied, _qemu_nbd: qemu_nbd, direct, sent_per_written: 0.0 })
    }

    /// What the pause of an epoch has of the disk: the guest's requests are answered, none comes meanwhile.
    fn seals(&mut self) -> Result<[f64; 2], BenchError> {
        let (mut times, before) = (Vec::new(), self.pair.stats());
        // Any front-end does: what is timed begins behind it.
        let client = &mut self.ways[0].replicated;
        for _ in 0..SEALS {
            let written = client.run(LOADS[1], Duration::ZERO, WRITES);
            written.map_err(|e| BenchError::Client(PRIMARY, e))?;
            times.push(self.pair.seal()?);
            self.pair.commit()?;
        }
        self.pair.settle()?;
        let after = self.pair.stats();
        let written = (after.written_bytes - before.written_bytes).max(1);
        self.sent_per_written = (after.replicated_bytes - before.replicated_bytes) as f64 / written as f64;
        Ok(quantiles(times))
    }

    fn load(&mut self, way: usize, load: Load, time: Duration) -> Result<LoadFigures, BenchError> {
        let way = &mut self.ways[way];
        let (mut replicated, mut export, mut copy, mut qemu_nbd) = (0.0, 0.0, None, None);
        let (mut spent, mut served) = ([Duration::ZERO; 3], [0; 3]);
        for _ in 0..TURNS {
            let before = Cpu::now()?;
            let (rate, sent) = alone(&mut way.export, load, time, EXPORT, || Ok(()))?;
            export = f64::max(export, rate);
            let cpu = Cpu::now()?.since(before);
            spent[0] += cpu.export + cpu.worker;
            served[0] += sent;
            let before = Cpu::now()?;
            let client = &mut way.replicated;
            let (sent, took) = self.pair.under(|| client.run(load, time, 1))?;
            let sent = sent.map_err(|e| BenchError::Client(PRIMARY, e))?;
            replicated = f64::max(replicated, sent as f64 / took.as_secs_f64());
            let cpu = Cpu::now()?.since(before);
            spent[1] += cpu.primary + cpu.worker;
            spent[2] += cpu.standby;
            served[1] += sent;
            served[2] += sent;
            if load.write {
                let copied = || self.copied.settle().map_err(BenchError::Copy);
                let (rate, _) = alone(&mut way.copy, load, time, COPY, copied)?;
                copy = Some(f64::max(copy.unwrap_or(0.0), rate));
            }
            if let Some(client) = &mut way.qemu_nbd {
                let (rate, _) = alone(client, load, time, QEMU_NBD, || Ok(()))?;
                qemu_nbd = Some(f64::max(qemu_nbd.unwrap_or(0.0), rate));
            }
        }
        let us_per_mib = |side: usize| {
            spent[side].as_secs_f64() * 1e6 / (served[side] as f64 * load.block as f64 / f64::from(1 << 20))
        };
        Ok(LoadFigures {
            frontend: way.frontend,
            load: load.name,
            depth: load.depth,
            replicated,
            export,
            copy,
            qemu_nbd,
            ratio: replicated / export,
            ratio_to_copy: copy.map(|rate| replicated / rate),
            ratio_to_qemu_nbd: qemu_nbd.map(|rate| replicated / rate),
            export_us_per_mib: us_per_mib(0),
            primary_us_per_mib: us_per_mib(1),
            standby_us_per_mib: us_per_mib(2),
        })
    }
}

/// Requests a second of a server without replication, and how many they were; all of them are done once `settle` returns.
fn alone(
    client: &mut Client,
    load: Load,
    time: Duration,
    server: &'static str,
    settle: impl FnOnce() -> Result<(), BenchError>,
) -> Result<(f64, u64), BenchError> {
    let began = Instant::now();
    let sent = client.run(load, time, 1);
    // First: it tells why the client was not served.
    settle()?;
    let sent = sent.map_err(|e| BenchError::Client(server, e))?;
    Ok((sent as f64 / began.elapsed().as_secs_f64(), sent))
}

/// An image without holes.
fn make_image(dir: &Path, size: u64) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut file = File::create(dir.join(IMAGE))?;
    let block: Vec<u8> = (0..1_u32 << 20).map(|i| (i % 253) as u8).collect();
    let mut left = size;
    while left > 0 {
        let piece = left.min(block.len() as u64);
        file.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    // Its way to the disk is not what is measured.
    file.sync_all()
}
