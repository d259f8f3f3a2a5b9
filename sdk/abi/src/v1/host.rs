//! What a plugin gets from its host.

use super::answer::{Answer, ErrorV1, native};
use super::edge::{Exported, known};
use abi_stable::std_types::{RArc, RStr, RString, RVec};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{Context, Disengage, Epoch, Host, Metric, PluginError, Premises, Side};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// [`Host`]
#[sabi_trait]
pub trait HostV1: Send + Sync {
    fn request_epoch(&self) -> Answer<()>;
    fn staged(&self, epoch: u64) -> Answer<()>;
    fn failed(&self, error: ErrorV1) -> Answer<()>;
    /// In nanoseconds.
    fn now(&self) -> Answer<u64>;
    fn metric(&self, name: RStr<'_>, help: RStr<'_>) -> Answer<MetricArc>;
}

/// [`Metric`]
#[sabi_trait]
pub trait MetricV1: Send + Sync {
    fn set(&self, value: u64) -> Answer<()>;
    fn add(&self, more: u64) -> Answer<()>;
}

pub(super) type MetricArc = MetricV1_TO<'static, RArc<()>>;

pub(super) type HostArc = HostV1_TO<'static, RArc<()>>;

impl HostV1 for Exported<Arc<dyn Host>> {
    fn request_epoch(&self) -> Answer<()> {
        self.ask(|h| h.request_epoch())
    }

    fn staged(&self, epoch: u64) -> Answer<()> {
        self.ask(|h| h.staged(Epoch(epoch)))
    }

    fn failed(&self, error: ErrorV1) -> Answer<()> {
        self.ask(|h| h.failed(error.into()))
    }

    fn now(&self) -> Answer<u64> {
        self.ask(|h| nanos(h.now()))
    }

    fn metric(&self, name: RStr<'_>, help: RStr<'_>) -> Answer<MetricArc> {
        self.ask(|h| {
            let metric = Exported::new(h.metric(name.as_str(), help.as_str()));
            MetricV1_TO::from_ptr(RArc::new(metric), sabi_trait::TD_Opaque)
        })
    }
}

impl MetricV1 for Exported<Arc<dyn Metric>> {
    fn set(&self, value: u64) -> Answer<()> {
        self.ask(|m| m.set(value))
    }

    fn add(&self, more: u64) -> Answer<()> {
        self.ask(|m| m.add(more))
    }
}

/// A metric that the host could not give is lost with the host.
struct ImportedMetric(Option<MetricArc>);

impl Metric for ImportedMetric {
    fn set(&self, value: u64) {
        let _ = self.0.as_ref().map(|m| m.set(value));
    }

    fn add(&self, more: u64) {
        let _ = self.0.as_ref().map(|m| m.add(more));
    }
}

struct ImportedHost(HostArc);

/// A host that panicked ends by itself; nobody on the plugin's side could do anything about it.
impl Host for ImportedHost {
    fn request_epoch(&self) {
        let _ = self.0.request_epoch();
    }

    fn staged(&self, epoch: Epoch) {
        let _ = self.0.staged(epoch.0);
    }

    fn failed(&self, error: PluginError) {
        let _ = self.0.failed(ErrorV1::from(&error));
    }

    fn now(&self) -> Duration {
        native(self.0.now()).map(Duration::from_nanos).unwrap_or_default()
    }

    fn metric(&self, name: &str, help: &str) -> Arc<dyn Metric> {
        Arc::new(ImportedMetric(native(self.0.metric(name.into(), help.into())).ok()))
    }
}

/// [`Context`]
#[derive(StableAbi)]
#[repr(C)]
pub struct ContextV1 {
    guest: RString,
    id: RString,
    side: u8,
    state_dir: RVec<u8>,
    config_dir: RVec<u8>,
    host: HostArc,
}

impl From<Context> for ContextV1 {
    fn from(context: Context) -> ContextV1 {
        ContextV1 {
            guest: context.guest.into(),
            id: context.id.into(),
            side: context.side as u8,
            state_dir: bytes(&context.state_dir),
            config_dir: bytes(&context.config_dir),
            host: HostV1_TO::from_ptr(RArc::new(Exported::new(context.host)), sabi_trait::TD_Opaque),
        }
    }
}

impl ContextV1 {
    pub(super) fn native(self) -> Result<Context, PluginError> {
        Ok(Context {
            guest: self.guest.into_string(),
            id: self.id.into_string(),
            side: side(self.side)?,
            state_dir: path(self.state_dir),
            config_dir: path(self.config_dir),
            host: Arc::new(ImportedHost(self.host)),
        })
    }
}

/// [`Premises`]
#[derive(StableAbi)]
#[repr(C)]
pub struct PremisesV1 {
    guest: RString,
    id: RString,
    config_dir: RVec<u8>,
}

impl From<&Premises> for PremisesV1 {
    fn from(premises: &Premises) -> PremisesV1 {
        let Premises { guest, id, config_dir } = premises;
        PremisesV1 { guest: guest.as_str().into(), id: id.as_str().into(), config_dir: bytes(config_dir) }
    }
}

impl PremisesV1 {
    pub(super) fn native(self) -> Premises {
        let (guest, id) = (self.guest.into_string(), self.id.into_string());
        Premises { guest, id, config_dir: path(self.config_dir) }
    }
}

pub(super) fn bytes(path: &Path) -> RVec<u8> {
    path.as_os_str().as_bytes().into()
}

pub(super) fn path(bytes: RVec<u8>) -> PathBuf {
    OsString::from_vec(bytes.into_vec()).into()
}

/// At most 584 years, which is longer than anything waits.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn side(number: u8) -> Result<Side, PluginError> {
    let all = [Side::Primary, Side::Standby];
    known(all.into_iter().find(|s| *s as u8 == number), "a side", number)
}

pub(super) fn disengage(number: u8) -> Result<Disengage, PluginError> {
    let all = [Disengage::Owner, Disengage::NotOwner];
    known(all.into_iter().find(|d| *d as u8 == number), "the reason for an end", number)
}
