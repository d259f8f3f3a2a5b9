//! What a shared object offers: its plugins' entries.

use super::answer::{Answer, ErrorV1, native};
use super::arbiter::{ArbiterBox, ArbiterV1_TO, ImportedArbiter};
use super::codec::{CodecBox, Encoding, ImportedCodec};
use super::disk::{DiskBox, DiskV1_TO, ImportedDisk};
use super::edge::{Exported, caught, known};
use super::guest::{GuestBox, ImportedGuest, Lending};
use super::host::{ContextV1, PremisesV1};
use super::log::{LogBox, forward};
use super::network::{ImportedNetwork, NetworkBox, NetworkV1_TO};
use super::policy::{ImportedPolicy, PolicyBox, PolicyV1_TO};
use super::transport::{ImportedTransport, TransportBox, TransportV1_TO};
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RErr, ROk, ROption, RStr, RString, RVec};
use abi_stable::{StableAbi, package_version_strings, sabi_trait};
use aventine_api::{
    Arbiter, Codec, ConfigError, ConfigProblem, Context, Disk, EpochPolicy, Factory, Guest, Kind,
    NetworkBuffer, PluginEntry, PluginError, Premises, Transport, Upkeep,
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const KINDS: [Kind; 7] =
    [Kind::Guest, Kind::Network, Kind::Disk, Kind::Transport, Kind::Policy, Kind::Codec, Kind::Arbiter];

/// What a shared object's header leads to.
#[derive(StableAbi)]
#[repr(C)]
#[sabi(kind(Prefix(prefix_ref = RootV1_Ref)))]
pub struct RootV1 {
    /// Takes the host's log and answers the plugins. Called once, before anything else.
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(log: LogBox) -> RVec<EntryBox>,
}

impl RootModule for RootV1_Ref {
    abi_stable::declare_root_module_statics! {RootV1_Ref}
    const BASE_NAME: &'static str = "aventine_plugin";
    const NAME: &'static str = "aventine_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// The facts of a [`PluginEntry`]; `kind` is its number.
#[derive(StableAbi)]
#[repr(C)]
pub struct DescriptionV1 {
    pub kind: u8,
    pub name: RString,
    pub version: RString,
    pub summary: RString,
    /// Whether it has an [`Upkeep`].
    pub upkeep: bool,
}

/// [`ConfigError`]: 1 is an unknown key, 2 a missing one, 3 a bad value.
#[derive(StableAbi)]
#[repr(C)]
pub struct ConfigErrorV1 {
    pub path: RVec<RString>,
    pub problem: u8,
    /// The key, or what is wrong with the value.
    pub text: RString,
    pub known: RVec<RString>,
    pub help: ROption<RString>,
}

/// A plugin of one kind.
#[derive(StableAbi)]
#[repr(u8)]
pub enum InstanceV1 {
    Guest(GuestBox),
    Network(NetworkBox),
    Disk(DiskBox),
    Transport(TransportBox),
    Policy(PolicyBox),
    Codec(CodecBox),
    Arbiter(ArbiterBox),
}

/// [`PluginEntry`]
#[sabi_trait]
pub trait EntryV1: Send + Sync {
    fn describe(&self) -> Answer<DescriptionV1>;
    fn validate(&self, config: RStr<'_>) -> Answer<ROption<ConfigErrorV1>>;
    fn schema(&self) -> Answer<RString>;
    fn make(&self, config: RStr<'_>, context: ContextV1) -> Answer<InstanceV1>;
    fn probe(&self, config: RStr<'_>, premises: PremisesV1) -> Answer<RVec<RString>>;
    fn reclaim(&self, config: RStr<'_>, premises: PremisesV1) -> Answer<RVec<RString>>;
}

pub(super) type EntryBox = EntryV1_TO<'static, RBox<()>>;

fn texts(texts: Vec<String>) -> RVec<RString> {
    texts.into_iter().map(RString::from).collect()
}

fn native_texts(texts: RVec<RString>) -> Vec<String> {
    texts.into_iter().map(RString::into_string).collect()
}

impl From<ConfigError> for ConfigErrorV1 {
    fn from(error: ConfigError) -> ConfigErrorV1 {
        let (problem, text, known, help) = match error.problem {
            ConfigProblem::UnknownKey { key, known } => (1, key, known, None),
            ConfigProblem::MissingKey { key } => (2, key, Vec::new(), None),
            ConfigProblem::BadValue { message, help } => (3, message, Vec::new(), help),
        };
        let help = help.map(RString::from).into();
        ConfigErrorV1 { path: texts(error.path), problem, text: text.into(), known: texts(known), help }
    }
}

impl From<ConfigErrorV1> for ConfigError {
    fn from(error: ConfigErrorV1) -> ConfigError {
        let text = error.text.into_string();
        let problem = match error.problem {
            1 => ConfigProblem::UnknownKey { key: text, known: native_texts(error.known) },
            2 => ConfigProblem::MissingKey { key: text },
            _ => {
                let help = error.help.into_option().map(RString::into_string);
                ConfigProblem::BadValue { message: text, help }
            }
        };
        ConfigError { path: native_texts(error.path), problem }
    }
}

/// Makes a plugin's object from its native entry.
fn make(entry: &PluginEntry, config: &str, context: Context) -> Result<InstanceV1, PluginError> {
    use sabi_trait::TD_Opaque;
    Ok(match entry.factory {
        Factory::Guest(make) => InstanceV1::Guest(Lending::export(make(config, context)?)),
        Factory::Network(make) => {
            InstanceV1::Network(NetworkV1_TO::from_value(Exported::new(make(config, context)?), TD_Opaque))
        }
        Factory::Disk(make) => {
            InstanceV1::Disk(DiskV1_TO::from_value(Exported::new(make(config, context)?), TD_Opaque))
        }
        Factory::Transport(make) => InstanceV1::Transport(TransportV1_TO::from_value(
            Exported::new(make(config, context)?),
            TD_Opaque,
        )),
        Factory::Policy(make) => {
            InstanceV1::Policy(PolicyV1_TO::from_value(Exported::new(make(config, context)?), TD_Opaque))
        }
        Factory::Codec(make) => InstanceV1::Codec(Encoding::export(make(config, context)?)),
        Factory::Arbiter(make) => {
            InstanceV1::Arbiter(ArbiterV1_TO::from_value(Exported::new(make(config, context)?), TD_Opaque))
        }
    })
}

/// An entry keeps nothing between calls, so a panic in one says nothing about the next.
struct OwnEntry(&'static PluginEntry);

impl OwnEntry {
    fn answer<R>(call: impl FnOnce() -> Result<R, PluginError>) -> Answer<R> {
        caught(&AtomicBool::new(false), call)
    }
}

impl EntryV1 for OwnEntry {
    fn describe(&self) -> Answer<DescriptionV1> {
        OwnEntry::answer(|| {
            Ok(DescriptionV1 {
                kind: self.0.factory.kind() as u8,
                name: self.0.name.into(),
                version: self.0.version.into(),
                summary: self.0.summary.into(),
                upkeep: self.0.upkeep.is_some(),
            })
        })
    }

    fn validate(&self, config: RStr<'_>) -> Answer<ROption<ConfigErrorV1>> {
        OwnEntry::answer(|| Ok((self.0.validate)(config.as_str()).err().map(ConfigErrorV1::from).into()))
    }

    fn schema(&self) -> Answer<RString> {
        OwnEntry::answer(|| Ok((self.0.schema)().into()))
    }

    fn make(&self, config: RStr<'_>, context: ContextV1) -> Answer<InstanceV1> {
        OwnEntry::answer(|| make(self.0, config.as_str(), context.native()?))
    }

    fn probe(&self, config: RStr<'_>, premises: PremisesV1) -> Answer<RVec<RString>> {
        let probe = |u: Upkeep| (u.probe)(config.as_str(), &premises.native());
        OwnEntry::answer(|| Ok(texts(self.0.upkeep.map(probe).unwrap_or_default())))
    }

    fn reclaim(&self, config: RStr<'_>, premises: PremisesV1) -> Answer<RVec<RString>> {
        let reclaim = |u: Upkeep| (u.reclaim)(config.as_str(), &premises.native());
        OwnEntry::answer(|| Ok(texts(self.0.upkeep.map(reclaim).transpose()?.unwrap_or_default())))
    }
}

/// A shared object's [`RootV1::open`]: what is registered in it.
pub extern "C" fn open(log: LogBox) -> RVec<EntryBox> {
    // Nothing in here can panic but an allocation that fails, and that ends the process everywhere.
    forward(log);
    aventine_api::inventory::iter::<PluginEntry>.into_iter().map(export).collect()
}

fn export(entry: &'static PluginEntry) -> EntryBox {
    EntryV1_TO::from_value(OwnEntry(entry), sabi_trait::TD_Opaque)
}

/// A factory that has `$entry` make its object and `$import` make the native value of it.
macro_rules! imported {
    ($kind:ident, $native:ty, $entry:ident, |$object:ident, $host:ident| $import:expr) => {
        Factory::$kind(Box::leak(Box::new(
            move |config: &str, context: Context| -> Result<Box<$native>, PluginError> {
                let $host = &Arc::clone(&context.host);
                match native($entry.make(config.into(), context.into()))? {
                    InstanceV1::$kind($object) => Ok(Box::new($import)),
                    _ => {
                        Err(ErrorV1::internal("The plugin made something of another kind than it said")
                            .into())
                    }
                }
            },
        )))
    };
}

/// The native form of a loaded entry. It lives as long as the process, as all code of a shared object does.
pub fn import(entry: EntryBox) -> Result<PluginEntry, PluginError> {
    let entry: &'static EntryBox = Box::leak(Box::new(entry));
    let DescriptionV1 { kind: number, name, version, summary, upkeep } = native(entry.describe())?;
    let kind = known(KINDS.into_iter().find(|k| *k as u8 == number), "a kind of plugin", number)?;
    let factory = match kind {
        Kind::Guest => imported!(Guest, dyn Guest, entry, |object, host| ImportedGuest::new(object, host)),
        Kind::Network => {
            imported!(Network, dyn NetworkBuffer, entry, |object, host| ImportedNetwork::new(object, host)?)
        }
        Kind::Disk => imported!(Disk, dyn Disk, entry, |object, host| ImportedDisk::new(object, host)?),
        Kind::Transport => {
            imported!(Transport, dyn Transport, entry, |object, host| ImportedTransport::new(object, host))
        }
        Kind::Policy => {
            imported!(Policy, dyn EpochPolicy, entry, |object, host| ImportedPolicy::new(object, host))
        }
        Kind::Codec => imported!(Codec, dyn Codec, entry, |object, _host| ImportedCodec(object)),
        Kind::Arbiter => {
            imported!(Arbiter, dyn Arbiter, entry, |object, _host| ImportedArbiter::new(object)?)
        }
    };
    let validate = move |config: &str| match entry.validate(config.into()) {
        ROk(ROption::RNone) => Ok(()),
        ROk(ROption::RSome(error)) => Err(error.into()),
        RErr(error) => Err(ConfigError::bad_value(&[], PluginError::from(error).chain(), None)),
    };
    let schema = move || native(entry.schema()).map_or_else(|_| "true".to_owned(), RString::into_string);
    Ok(PluginEntry {
        name: String::leak(name.into_string()),
        version: String::leak(version.into_string()),
        summary: String::leak(summary.into_string()),
        validate: Box::leak(Box::new(validate)),
        schema: Box::leak(Box::new(schema)),
        factory,
        upkeep: upkeep.then(|| imported_upkeep(entry)),
    })
}

fn imported_upkeep(entry: &'static EntryBox) -> Upkeep {
    let probe =
        move |config: &str, premises: &Premises| match native(entry.probe(config.into(), premises.into())) {
            Ok(found) => native_texts(found),
            Err(error) => vec![error.chain()],
        };
    let reclaim = move |config: &str, premises: &Premises| {
        native(entry.reclaim(config.into(), premises.into())).map(native_texts)
    };
    Upkeep { probe: Box::leak(Box::new(probe)), reclaim: Box::leak(Box::new(reclaim)) }
}

/// The same plugin behind both adapters, in one program: what a loaded plugin is, without the loading.
pub fn adapted(entry: &'static PluginEntry) -> Result<PluginEntry, PluginError> {
    import(export(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi_stable::StableAbi;
    use abi_stable::type_layout::TypeLayout;
    use std::collections::HashSet;
    use std::fmt::Write;

    /// Every type of interface 1 that can be reached from its root, field by field. What belongs to `abi_stable` is fixed by
    /// its version.
    fn describe(layout: &'static TypeLayout, seen: &mut HashSet<String>, text: &mut String) {
        let id = format!("{:?}", layout.get_utypeid());
        if !seen.insert(id) {
            return;
        }
        if layout.package().as_str() == env!("CARGO_PKG_NAME") {
            let (size, align) = (layout.size(), layout.alignment());
            writeln!(text, "{} size:{size} align:{align} {:?}", layout.full_type(), layout.repr_attr())
                .unwrap();
            let fields = format!("{}\n{}", layout.data(), layout.phantom_fields());
            for line in fields.lines().map(str::trim_end).filter(|l| !l.trim().is_empty()) {
                writeln!(text, "  {line}").unwrap();
            }
        }
        for nested in layout.shared_vars().type_layouts() {
            describe(nested(), seen, text);
        }
    }

    #[test]
    fn the_layout_of_interface_1_is_the_released_one() {
        let mut text = String::new();
        describe(<RootV1_Ref as StableAbi>::LAYOUT, &mut HashSet::new(), &mut text);
        let released = include_str!("layout.txt");
        if text != released {
            let now = std::env::temp_dir().join("aventine-abi-v1-layout.txt");
            std::fs::write(&now, &text).unwrap();
            let line = text.lines().zip(released.lines()).position(|(a, b)| a != b);
            let line = line.unwrap_or_else(|| text.lines().count().min(released.lines().count())) + 1;
            panic!(
                "interface 1 is frozen, and src/v1/layout.txt says otherwise from line {line} on. What it is now is in \
                 {}. Make an interface 2: docs/abi.md.",
                now.display()
            );
        }
    }
}
