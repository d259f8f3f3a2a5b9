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
//! and written the same way: past the page cache, or through it. A plugin that is not made of an image alone, such as `drbd`, gets the
//! disks that the user names, and so does what it is compared with; what is not named is not measured.
//!
//! The standby's work takes the processors of the same machine here, and where its image is on the same disk, half of that; so the
//! processor time of each side is told, too. As on two hosts each side can have processors of its own (`apart`).
//!
//! A disk may write faster than one connection carries. The export alone is then a floor that no replication can reach; the bare copy
//! (`copy`) is the one that has the link in it.

mod apart;
mod channel;
mod client;
mod copy;
mod cpu;
mod nbd;
mod pair;
mod servers;
mod storage;
mod vhost;

use crate::quantiles;
use apart::Apart;
use aventine_api::{BlockDevice, ConfigError, Kind, PluginEntry, PluginError};
use aventine_disk_common::image::{Image, ImageError, OpenError};
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
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use storage::Disks;
use tempfile::{TempDir, tempdir, tempdir_in};

/// How often the servers take turns.
const TURNS: u32 = 5;
/// The servers: names of their directories and sockets, and where they have threads here, parts of their names.
const PRIMARY: &str = cpu::PRIMARY;
const STANDBY: &str = cpu::STANDBY;
const EXPORT: &str = cpu::EXPORT;
const COPY: &str = "copy";
const QEMU_NBD: &str = "qemu";
/// The least that all loads find room in.
const LEAST: u64 = 16 << 20;
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
    /// Its disks are not made here.
    #[error(
        "Plugin {0} is not made of an image alone. Give its tables: `--primary-disk`, `--standby-disk` and `--overwrite`; \
        `aventine bench disk --help` has an example"
    )]
    NoImage(String),
    /// A table that the plugin does not take.
    #[error("Plugin {0} does not take the {1}'s table: `{path}`", path = .2.path.join("."))]
    Table(String, &'static str, #[source] ConfigError),
    /// The plugin.
    #[error("Plugin {0} failed while {1}")]
    Plugin(String, &'static str, #[source] PluginError),
    /// The plugin does nothing.
    #[error("Plugin {0} is silent: nothing {1} for a minute")]
    Silent(String, &'static str),
    /// A disk that the loads do not fit on.
    #[error("The smallest of the disks has {0} bytes; {LEAST} are needed at least")]
    Small(u64),
    /// A disk to compare with that cannot be written to.
    #[error("A disk without replication cannot be filled")]
    Fill(#[source] ImageError),
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
    /// Nothing to divide.
    #[error("There is one processor only: both sides must share it")]
    OneProcessor,
    /// The system does not let threads stay where they are put.
    #[error("The two sides cannot be put on processors of their own")]
    Apart(#[source] io::Error),
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

/// Where the disks are.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In images that are made for this, in temporary directories.
    Made {
        /// Where the standby's image is, if not where the others are.
        standby: Option<PathBuf>,
    },
    /// Where the user says. All of it is overwritten.
    Named(Named),
}

/// Disks that are there already.
#[derive(Clone, Debug)]
pub struct Named {
    /// The plugin's table on the primary, as a configuration has it. Relative paths in it begin at the working directory.
    pub primary: String,
    /// The one on the standby.
    pub standby: String,
    /// A block device or an image for the export without replication.
    pub export: Option<PathBuf>,
    /// Two of them, for the bare copy from the first to the second.
    pub copy: Option<[PathBuf; 2]>,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the disk; of disks that are there already, as much as is used at most.
    pub size: u64,
    /// For each load on each server, in all.
    pub time: Duration,
    /// Which front-ends: one or more.
    pub frontends: Vec<Frontend>,
    /// Through the page cache, where it could be past it. A named disk of the plugin's is as its table says.
    pub cached: bool,
    /// Where the disks are.
    pub storage: Storage,
    /// Half of the processors for the standby's side, and for the bare copy's; the others for all else.
    pub apart: bool,
}

/// What a disk costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The plugin.
    pub plugin: String,
    /// Where the images are that were made.
    pub directory: Option<PathBuf>,
    /// Where the standby's image is, if it was made.
    pub standby_directory: Option<PathBuf>,
    /// Bytes of each disk that were read and written.
    pub size: u64,
    /// Whether whole blocks of the images without replication go past the page cache; a file system in memory has none. `None`
    /// where there is no such image.
    pub direct: Option<bool>,
    /// Processors that both sides, the client and the servers share.
    pub processors: usize,
    /// Whether the standby's side had half of them for itself.
    pub apart: bool,
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
    /// A second, of the image through the same front-end; `None` if there is none.
    pub export: Option<f64>,
    /// A second, of the image through the same front-end with a bare copy of what is written; `None` for reads, and without images.
    pub copy: Option<f64>,
    /// A second, of the image through qemu-nbd; `None` where that is not installed, of other front-ends than NBD, and of disks that
    /// are named.
    pub qemu_nbd: Option<f64>,
    /// `replicated` ÷ `export`.
    pub ratio: Option<f64>,
    /// `replicated` ÷ `copy`.
    pub ratio_to_copy: Option<f64>,
    /// `replicated` ÷ `qemu_nbd`.
    pub ratio_to_qemu_nbd: Option<f64>,
    /// Processor time in microseconds for each MiB, without the client's and the kernel's own threads: of the export.
    pub export_us_per_mib: Option<f64>,
    /// Of the replicated disk's export and its plugin on the primary.
    pub primary_us_per_mib: f64,
    /// Of the plugin on the standby, receiving and applying.
    pub standby_us_per_mib: f64,
}

/// Whether [`measure`] can make disks of a plugin: [`Storage::Made`].
pub fn takes_image(plugin: &str) -> bool {
    storage::takes_image(plugin)
}

fn find(plugin: &str) -> Result<&'static PluginEntry, BenchError> {
    aventine_registry::find(Kind::Disk, plugin).ok_or_else(|| {
        BenchError::Unknown(plugin.to_owned(), aventine_registry::names(Kind::Disk).join(", "))
    })
}

/// Measures a plugin. Blocks; any user may who may use the disks.
pub fn measure(plugin: &str, options: &Options) -> Result<Figures, BenchError> {
    find(plugin)?;
    let apart = options.apart.then(Apart::begin).transpose()?;
    let dir = tempdir().map_err(BenchError::Directory)?;
    let Options { size, cached, time, .. } = *options;
    match &options.storage {
        Storage::Named(named) => {
            let disks = storage::take(plugin, dir.path(), named, size, cached)?;
            Bench::start(plugin, dir.path(), disks, options)?.figures(plugin, time, apart.as_ref())
        }
        Storage::Made { .. } if !takes_image(plugin) => Err(BenchError::NoImage(plugin.to_owned())),
        Storage::Made { standby } => {
            let at =
                |path: &PathBuf| tempdir_in(path).map_err(|e| BenchError::StandbyDirectory(path.clone(), e));
            let standby = standby.as_ref().map(at).transpose()?;
            let standby = standby.as_ref().map_or(dir.path(), TempDir::path);
            let disks = storage::make(dir.path(), standby, size, cached)?;
            let figures =
                Bench::start(plugin, dir.path(), disks, options)?.figures(plugin, time, apart.as_ref())?;
            let parent = |dir: &Path| dir.parent().map(Path::to_owned);
            Ok(Figures { directory: parent(dir.path()), standby_directory: parent(standby), ..figures })
        }
    }
}

/// The servers through one front-end. Dropped in this order: clients before servers.
struct Way {
    frontend: Frontend,
    replicated: Client,
    export: Option<Client>,
    copy: Option<Client>,
    qemu_nbd: Option<Client>,
    _fronts: Vec<Box<dyn Any>>,
}

// The front-ends before their devices.
struct Bench {
    ways: Vec<Way>,
    pair: Pair,
    copied: Option<Arc<Copied>>,
    _qemu_nbd: Option<QemuNbd>,
    direct: Option<bool>,
    size: u64,
    sent_per_written: f64,
}

impl Bench {
    fn start(plugin: &str, dir: &Path, disks: Disks, options: &Options) -> Result<Bench, BenchError> {
        let Disks { plugin: places, unfilled, export, copy, qemu_nbd: image } = disks;
        let images = || export.iter().chain(copy.iter().flatten());
        let direct = images().next().map(Image::is_direct);
        let smallest = images().map(Image::size).min();
        let pair = Pair::start(plugin, places, unfilled)?;
        let size = pair.device().size().min(smallest.unwrap_or(u64::MAX)).min(options.size);
        if size < LEAST {
            return Err(BenchError::Small(size));
        }
        let raw = export.map(|image| Arc::new(Raw(image)) as Arc<dyn BlockDevice>);
        let copied = copy.map(|[from, to]| Copied::start(from, to).map(Arc::new)).transpose()?;
        let (mut ways, mut qemu_nbd) = (Vec::new(), None);
        for &frontend in &options.frontends {
            let mut fronts = Vec::new();
            let mut reach = |name, device| {
                let (front, client) = serve(frontend, dir, name, device, size)?;
                fronts.push(front);
                Ok::<_, BenchError>(client)
            };
            let replicated = reach(PRIMARY, pair.device())?;
            let export = raw.clone().map(|device| reach(EXPORT, device)).transpose()?;
            let copy = copied.clone().map(|device| reach(COPY, device)).transpose()?;
            let mut other = None;
            if let (Frontend::Nbd, Some(image)) = (frontend, &image) {
                (qemu_nbd, other) = QemuNbd::start(dir, image, size, direct == Some(true))?.unzip();
            }
            ways.push(Way { frontend, replicated, export, copy, qemu_nbd: other, _fronts: fronts });
        }
        Ok(Bench { ways, pair, copied, _qemu_nbd: qemu_nbd, direct, size, sent_per_written: 0.0 })
    }

    fn figures(mut self, plugin: &str, time: Duration, apart: Option<&Apart>) -> Result<Figures, BenchError> {
        apart.map_or(Ok(()), Apart::part)?;
        let seal_us = self.seals()?;
        let mut loads = Vec::new();
        for way in 0..self.ways.len() {
            for load in LOADS {
                loads.push(self.load(way, load, time / TURNS)?);
            }
        }
        Ok(Figures {
            plugin: plugin.to_owned(),
            directory: None,
            standby_directory: None,
            size: self.size,
            direct: self.direct,
            processors: apart
                .map_or_else(|| available_parallelism().map_or(1, usize::from), Apart::processors),
            apart: apart.is_some(),
            seal_us,
            sent_per_written: self.sent_per_written,
            loads,
        })
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
        let (mut replicated, mut export, mut copy, mut qemu_nbd) = (0.0, None, None, None);
        let (mut spent, mut served) = ([Duration::ZERO; 3], [0; 3]);
        for _ in 0..TURNS {
            if let Some(client) = &mut way.export {
                let before = Cpu::now()?;
                let sent = alone(client, load, time, EXPORT, &mut export, || Ok(()))?;
                let cpu = Cpu::now()?.since(before);
                spent[0] += cpu.export + cpu.worker;
                served[0] += sent;
            }
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
            if let (true, Some(client), Some(copied)) = (load.write, &mut way.copy, &self.copied) {
                let settle = || copied.settle().map_err(BenchError::Copy);
                alone(client, load, time, COPY, &mut copy, settle)?;
            }
            if let Some(client) = &mut way.qemu_nbd {
                alone(client, load, time, QEMU_NBD, &mut qemu_nbd, || Ok(()))?;
            }
        }
        let us_per_mib = |side: usize| {
            spent[side].as_secs_f64() * 1e6 / (served[side] as f64 * load.block as f64 / f64::from(1 << 20))
        };
        let ratio = |rate: Option<f64>| rate.map(|rate| replicated / rate);
        Ok(LoadFigures {
            frontend: way.frontend,
            load: load.name,
            depth: load.depth,
            replicated,
            export,
            copy,
            qemu_nbd,
            ratio: ratio(export),
            ratio_to_copy: ratio(copy),
            ratio_to_qemu_nbd: ratio(qemu_nbd),
            export_us_per_mib: export.map(|_| us_per_mib(0)),
            primary_us_per_mib: us_per_mib(1),
            standby_us_per_mib: us_per_mib(2),
        })
    }
}

/// Has a server without replication answer requests, all of them done once `settle` returns; how many they were. `best` are those
/// of a second, of the best turn so far.
fn alone(
    client: &mut Client,
    load: Load,
    time: Duration,
    server: &'static str,
    best: &mut Option<f64>,
    settle: impl FnOnce() -> Result<(), BenchError>,
) -> Result<u64, BenchError> {
    let began = Instant::now();
    let sent = client.run(load, time, 1);
    // First: it tells why the client was not served.
    settle()?;
    let sent = sent.map_err(|e| BenchError::Client(server, e))?;
    let rate = sent as f64 / began.elapsed().as_secs_f64();
    *best = Some(best.map_or(rate, |best| best.max(rate)));
    Ok(sent)
}
