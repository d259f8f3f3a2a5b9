//! The plugins of one guest, made from the configuration through the registry.

use crate::metrics::Metrics;
use aventine_api::{
    Arbiter, Attachments, Codec, Context, Disk, DiskAttachment, Epoch, EpochPolicy, ErrorCode, Factory,
    Guest, Host, Metric, NetworkBuffer, PageBitmap, PluginError, Side, Transport,
};
use aventine_config::{Config, Frontend, Instance};
use aventine_export::Export;
use aventine_export_vhost::{FileId, Part, VhostExport};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What a plugin's own thread reports.
pub(crate) enum Report {
    /// A buffer is getting full.
    EarlyEpoch,
    /// The disk at this position holds every write of this epoch.
    DiskStaged(usize, Epoch),
    /// A plugin failed on its own.
    Failed(String, PluginError),
}

/// Where the reports of a guest's plugins go: to the loop of the role that this side plays.
#[derive(Clone)]
pub(crate) struct Reports(Arc<Mutex<Sink>>);

type Sink = Box<dyn Fn(Report) + Send>;

impl Reports {
    pub(crate) fn to(sink: impl Fn(Report) + Send + 'static) -> Reports {
        Reports(Arc::new(Mutex::new(Box::new(sink))))
    }

    /// For plugins that have nothing to say.
    pub(crate) fn nowhere() -> Reports {
        Reports::to(|_| {})
    }

    /// From now on they go elsewhere.
    pub(crate) fn redirect(&self, sink: impl Fn(Report) + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(sink);
    }

    fn send(&self, report: Report) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)(report);
    }
}

/// A plugin failed in a call of the engine's.
#[derive(Debug, thiserror::Error)]
#[error("Plugin {id} failed while {doing}")]
pub struct PluginFailure {
    /// `id` of the plugin's table.
    pub id: String,
    /// What was being done.
    pub doing: &'static str,
    /// Why.
    pub source: PluginError,
}

impl PluginFailure {
    /// The whole chain in one line, for the status and for the other side.
    pub(crate) fn chain(&self) -> String {
        format!("{self}: {}", self.source.chain())
    }
}

/// Attaches the plugin and the deed to its error.
pub(crate) trait During<T> {
    fn during(self, id: &str, doing: &'static str) -> Result<T, PluginFailure>;
}

impl<T> During<T> for Result<T, PluginError> {
    fn during(self, id: &str, doing: &'static str) -> Result<T, PluginFailure> {
        self.map_err(|source| PluginFailure { id: id.to_owned(), doing, source })
    }
}

/// Calls an instance's factory, which is of the kind that its table asked for.
macro_rules! make {
    ($maker:expr, $instance:expr, $position:expr, $kind:ident) => {{
        let instance: &Instance = $instance;
        let Factory::$kind(make) = instance.entry.factory else {
            unreachable!("the configuration resolves plugins by kind")
        };
        make(&instance.config, $maker.context(instance, $position)).during(&instance.id, "being set up")
    }};
}

/// Makes plugins for one side; `reports` takes what they say from their own threads.
pub(crate) struct Maker<'a> {
    pub(crate) config: &'a Config,
    pub(crate) side: Side,
    pub(crate) state_dir: &'a Path,
    pub(crate) reports: Reports,
    pub(crate) metrics: Metrics,
}

struct PluginHost {
    id: String,
    position: usize,
    reports: Reports,
    metrics: Metrics,
}

impl Host for PluginHost {
    fn request_epoch(&self) {
        self.reports.send(Report::EarlyEpoch);
    }

    fn staged(&self, epoch: Epoch) {
        self.reports.send(Report::DiskStaged(self.position, epoch));
    }

    fn failed(&self, error: PluginError) {
        self.reports.send(Report::Failed(self.id.clone(), error));
    }

    fn metric(&self, name: &str, help: &str) -> Arc<dyn Metric> {
        self.metrics.metric(&self.id, name, help)
    }
}

impl Maker<'_> {
    fn context(&self, instance: &Instance, position: usize) -> Context {
        let (reports, metrics) = (self.reports.clone(), self.metrics.clone());
        let host = PluginHost { id: instance.id.clone(), position, reports, metrics };
        Context {
            guest: self.config.name.clone(),
            id: instance.id.clone(),
            side: self.side,
            state_dir: self.state_dir.to_owned(),
            config_dir: self.config.dir.clone(),
            host: Arc::new(host),
        }
    }

    pub(crate) fn transport(&self) -> Result<Box<dyn Transport>, PluginFailure> {
        make!(self, &self.config.transport, 0, Transport)
    }

    pub(crate) fn arbiter(&self) -> Result<Box<dyn Arbiter>, PluginFailure> {
        make!(self, &self.config.arbiter, 0, Arbiter)
    }

    pub(crate) fn policy(&self) -> Result<Box<dyn EpochPolicy>, PluginFailure> {
        make!(self, &self.config.policy, 0, Policy)
    }

    pub(crate) fn codec(&self) -> Result<Box<dyn Codec>, PluginFailure> {
        make!(self, &self.config.codec, 0, Codec)
    }

    /// The disks that cannot be what a guest starts from, and why.
    pub(crate) fn broken_disks(&self) -> Vec<(String, String)> {
        let made = |(position, disk): (usize, &Instance)| {
            let made: Result<Box<dyn Disk>, PluginFailure> = make!(self, disk, position, Disk);
            made.err().map(|failure| (disk.id.clone(), failure.chain()))
        };
        self.config.disks.iter().enumerate().filter_map(made).collect()
    }

    /// The guest and its buffers.
    pub(crate) fn parts(&self) -> Result<Parts, PluginFailure> {
        let networks = self.config.networks.iter().enumerate();
        let networks = networks
            .map(|(i, n)| Ok((n.id.clone(), make!(self, n, i, Network)?)))
            .collect::<Result<_, _>>()?;
        let disks = self.config.disks.iter().enumerate();
        let disks =
            disks.map(|(i, d)| Ok((d.id.clone(), make!(self, d, i, Disk)?))).collect::<Result<_, _>>()?;
        let guest = make!(self, &self.config.guest, 0, Guest)?;
        let frontends = self.config.frontends.clone();
        let (exports, vhosts, ram) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Parts { guest, networks, exports, vhosts, disks, frontends, ram })
    }
}

/// The guest and its buffers. Dropped in this order: the guest first, because it uses the others.
pub(crate) struct Parts {
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) networks: Vec<(String, Box<dyn NetworkBuffer>)>,
    pub(crate) exports: Vec<Export>,
    /// Those that write guest memory by themselves, and the disks' ids.
    pub(crate) vhosts: Vec<(String, VhostExport)>,
    pub(crate) disks: Vec<(String, Box<dyn Disk>)>,
    frontends: Vec<Frontend>,
    /// Which files the guest's memory is, where it matters.
    ram: Vec<Part>,
}

impl Parts {
    /// Exports the disks and starts the guest.
    pub(crate) fn start(&mut self, state_dir: &Path) -> Result<(), PluginFailure> {
        let mut attachments = Attachments::default();
        for (id, network) in &self.networks {
            attachments.networks.push((id.clone(), network.attachment()));
        }
        for ((id, disk), frontend) in self.disks.iter().zip(&self.frontends) {
            let doing = "being exported to the guest";
            let attachment = match frontend {
                Frontend::Nbd => {
                    let socket = state_dir.join(format!("{id}.nbd"));
                    let export = Export::start(&socket, id, disk.block())
                        .map_err(|e| PluginError::new(ErrorCode::Unavailable, e))
                        .during(id, doing)?;
                    self.exports.push(export);
                    DiskAttachment::Nbd(socket)
                }
                Frontend::VhostUser { block } => {
                    let socket = state_dir.join(format!("{id}.vhost"));
                    let export = VhostExport::start(&socket, disk.block(), *block)
                        .map_err(|e| PluginError::new(ErrorCode::Unavailable, e))
                        .during(id, doing)?;
                    self.vhosts.push((id.clone(), export));
                    DiskAttachment::VhostUser(socket)
                }
            };
            attachments.disks.push((id.clone(), attachment));
        }
        self.guest.start(&attachments).during("guest", "starting")?;
        if !self.vhosts.is_empty() {
            self.ram = ram_of(&*self.guest).during("guest", "finding the file of its memory")?;
        }
        Ok(())
    }

    /// [`Guest::dirty`], with the pages that the disks wrote.
    pub(crate) fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), PluginFailure> {
        self.guest.dirty(dirty).during("guest", "finding dirty pages")?;
        for (id, export) in &self.vhosts {
            let taken = export.take_written(&self.ram, dirty);
            taken
                .map_err(|e| PluginError::new(ErrorCode::Corrupt, e))
                .during(id, "naming the pages it wrote")?;
        }
        Ok(())
    }

    /// The smallest depth any buffer declares.
    pub(crate) fn depth(&self) -> u32 {
        let networks = self.networks.iter().map(|(_, n)| n.depth());
        networks.chain(self.disks.iter().map(|(_, d)| d.depth())).min().unwrap_or(8)
    }

    /// What must be the same on both hosts.
    pub(crate) fn signature(&mut self, config: &Config) -> Result<Vec<(String, String)>, PluginFailure> {
        let plugin = |i: &Instance| format!("{} {}", i.entry.name, i.entry.version);
        let mut facts = vec![
            ("aventine".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("name".to_owned(), config.name.clone()),
            ("heartbeat".to_owned(), format!("{:?}", config.heartbeat)),
            ("detection".to_owned(), format!("{:?}", config.detection)),
            ("audit".to_owned(), config.audit.map_or("off".to_owned(), |n| format!("every {n} epochs"))),
            ("guest".to_owned(), plugin(&config.guest)),
            ("transport".to_owned(), plugin(&config.transport)),
            ("codec".to_owned(), plugin(&config.codec)),
            ("arbiter".to_owned(), plugin(&config.arbiter)),
        ];
        facts.extend(config.networks.iter().map(|n| (format!("network {}", n.id), plugin(n))));
        facts.extend(config.disks.iter().map(|d| (format!("disk {}", d.id), plugin(d))));
        let frontends = config.disks.iter().zip(&config.frontends);
        facts.extend(frontends.map(|(d, f)| (format!("frontend of disk {}", d.id), f.to_string())));
        let guest = self.guest.signature().during("guest", "being described")?;
        facts.extend(guest.into_iter().map(|(name, value)| (format!("guest.{name}"), value)));
        Ok(facts)
    }
}

/// A guest without a file for its memory cannot be served by a device of our own.
#[derive(Debug, thiserror::Error)]
enum RamError {
    #[error(
        "Guest memory from page {0} on is not in a file, so no disk with frontend = \"vhost-user\" can reach it. Use \"nbd\""
    )]
    NoFile(u64),
    #[error("The file of guest memory cannot be looked at")]
    Stat(#[source] rustix::io::Errno),
}

fn ram_of(guest: &dyn Guest) -> Result<Vec<Part>, PluginError> {
    let part = |(position, region): (usize, aventine_api::Region)| {
        let file = guest.backing(position).ok_or(RamError::NoFile(region.first_page))?;
        let file = FileId::of(file).map_err(RamError::Stat)?;
        Ok(Part { file, first_page: region.first_page, pages: region.pages })
    };
    let parts: Result<_, RamError> = guest.regions().into_iter().enumerate().map(part).collect();
    parts.map_err(|e| PluginError::new(ErrorCode::Refused, e))
}
