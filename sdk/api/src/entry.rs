use crate::{
    Arbiter, Codec, Context, Disk, EpochPolicy, Guest, NetworkBuffer, PluginError, Transport, Upkeep,
};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use std::fmt;

/// The seven kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`Guest`]
    Guest = 1,
    /// [`NetworkBuffer`]
    Network = 2,
    /// [`Disk`]
    Disk = 3,
    /// [`Transport`]
    Transport = 4,
    /// [`EpochPolicy`]
    Policy = 5,
    /// [`Codec`]
    Codec = 6,
    /// [`Arbiter`]
    Arbiter = 7,
}

impl Kind {
    /// The name of the kind's table in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Guest => "guest",
            Kind::Network => "network",
            Kind::Disk => "disk",
            Kind::Transport => "transport",
            Kind::Policy => "policy",
            Kind::Codec => "codec",
            Kind::Arbiter => "arbiter",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes a plugin from its configuration text, which [`PluginEntry::validate`] has accepted. A reference, not a plain
/// function: what makes a loaded plugin knows where it was loaded from.
type Make<T> = &'static (dyn Fn(&str, Context) -> Result<Box<T>, PluginError> + Send + Sync);

/// Checks a plugin's configuration text.
type Validate = &'static (dyn Fn(&str) -> Result<(), ConfigError> + Send + Sync);

/// How to make a plugin of each kind.
#[derive(Clone, Copy)]
pub enum Factory {
    /// Makes a guest.
    Guest(Make<dyn Guest>),
    /// Makes a network buffer.
    Network(Make<dyn NetworkBuffer>),
    /// Makes a disk.
    Disk(Make<dyn Disk>),
    /// Makes a transport.
    Transport(Make<dyn Transport>),
    /// Makes an epoch policy.
    Policy(Make<dyn EpochPolicy>),
    /// Makes a codec.
    Codec(Make<dyn Codec>),
    /// Makes an arbiter.
    Arbiter(Make<dyn Arbiter>),
}

impl Factory {
    /// The kind it makes.
    pub fn kind(&self) -> Kind {
        match self {
            Factory::Guest(_) => Kind::Guest,
            Factory::Network(_) => Kind::Network,
            Factory::Disk(_) => Kind::Disk,
            Factory::Transport(_) => Kind::Transport,
            Factory::Policy(_) => Kind::Policy,
            Factory::Codec(_) => Kind::Codec,
            Factory::Arbiter(_) => Kind::Arbiter,
        }
    }
}

/// What a plugin registers with [`inventory::submit!`].
pub struct PluginEntry {
    /// The name used in `plugin = "…"`.
    pub name: &'static str,
    /// The plugin's version.
    pub version: &'static str,
    /// One line for `aventine plugins`.
    pub summary: &'static str,
    /// Checks the plugin's configuration text (TOML, without the `plugin` and `id` keys). Pure: touches nothing.
    pub validate: Validate,
    /// JSON Schema of that text as a table: [`schema`](crate::schema) makes it. Pure.
    pub schema: &'static (dyn Fn() -> String + Send + Sync),
    /// Makes the plugin.
    pub factory: Factory,
    /// What it needs of a host and may leave behind there; `None` for most plugins.
    pub upkeep: Option<Upkeep>,
}

inventory::collect!(PluginEntry);

/// What is wrong with a plugin's configuration, and where: the host turns the path into file, line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ConfigError {
    /// Keys from the plugin's table down to the value; array positions as decimal numbers.
    pub path: Vec<String>,
    /// What is wrong there.
    pub problem: ConfigProblem,
}

/// What can be wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// A key that the plugin does not know.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys known at this place.
        known: Vec<String>,
    },
    /// A key that must be there is not.
    #[error("missing key `{key}`")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value that does not fit.
    #[error("{message}")]
    BadValue {
        /// What is wrong.
        message: String,
        /// What to do, if that can be said.
        help: Option<String>,
    },
}

impl ConfigError {
    /// A value that does not fit, at `path`.
    pub fn bad_value(path: &[&str], message: impl Into<String>, help: Option<&str>) -> ConfigError {
        ConfigError {
            path: path.iter().map(|p| (*p).to_owned()).collect(),
            problem: ConfigProblem::BadValue { message: message.into(), help: help.map(str::to_owned) },
        }
    }
}

/// Reads a plugin's configuration text into `T`, with errors that keep their place. `T` should deny unknown fields.
pub fn parse_config<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let syntax = |e: toml::de::Error| ConfigError::bad_value(&[], e.message(), None);
    let table = toml::Deserializer::parse(text).map_err(syntax)?;
    serde_path_to_error::deserialize(table).map_err(|e| {
        let step = |s: &Segment| match s {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        };
        let path = e.path().iter().filter_map(step).collect();
        located(path, e.into_inner().message())
    })
}

/// serde reports unknown and missing fields as text only: `unknown field `x`, expected one of `a`, `b``.
fn located(mut path: Vec<String>, message: &str) -> ConfigError {
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let problem = if message.starts_with("unknown field `") {
        let key = quoted.next().unwrap_or_default();
        if path.last() == Some(&key) {
            path.pop();
        }
        ConfigProblem::UnknownKey { key, known: quoted.collect() }
    } else if message.starts_with("missing field `") {
        ConfigProblem::MissingKey { key: quoted.next().unwrap_or_default() }
    } else {
        ConfigProblem::BadValue { message: message.to_owned(), help: None }
    };
    ConfigError { path, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Outer {
        size: u32,
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        tap: String,
    }

    #[test]
    fn errors_keep_their_place() {
        let parse = |text| parse_config::<Outer>(text).unwrap_err();
        let e = parse("size = 1\ninner = { tapp = 'x' }");
        assert_eq!(e.path, ["inner"]);
        assert_eq!(e.problem, ConfigProblem::UnknownKey { key: "tapp".into(), known: vec!["tap".into()] });
        let e = parse("size = 1\ninner = {}");
        assert_eq!(
            (e.path, e.problem),
            (vec!["inner".into()], ConfigProblem::MissingKey { key: "tap".into() })
        );
        let e = parse("size = 'x'\ninner = { tap = 'x' }");
        assert_eq!(e.path, ["size"]);
        assert!(matches!(e.problem, ConfigProblem::BadValue { .. }), "{e}");
    }
}
