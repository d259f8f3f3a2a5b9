//! The top level of the configuration.

use crate::frontend;
use crate::plugin::{Ids, is_file_name};
use crate::report::Problem;
use crate::shared::{self, Registry};
use crate::{Config, Frontend, Instance, Strategies, plugin};
use aventine_api::Kind;
use aventine_api::units::Quantity;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const KEYS: [&str; 13] = [
    "name",
    "staging",
    "heartbeat",
    "detection",
    "audit",
    "plugins",
    "guest",
    "network",
    "disk",
    "transport",
    "policy",
    "codec",
    "arbiter",
];
const STRATEGY_KEYS: [&str; 4] = ["trace", "plugins", "policy", "codec"];
/// Most syntax errors shown: those after the first few are mostly their consequences.
const MOST_SYNTAX: usize = 3;
/// Deepest nesting of tables and arrays; no plugin needs nearly as much, and reading is recursive.
const DEEPEST: u32 = 32;
pub(crate) const NAME_LENGTH: usize = 48;

const STAGING: u64 = 256 << 20;
const STAGING_RANGE: RangeInclusive<u64> = 16 << 20..=64 << 30;
const HEARTBEAT: Duration = Duration::from_millis(50);
const HEARTBEAT_RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
const DETECTION: Duration = Duration::from_millis(500);
const DETECTION_RANGE: RangeInclusive<Duration> = Duration::from_millis(3)..=Duration::from_secs(300);
pub(crate) const AUDIT_RANGE: RangeInclusive<u32> = 1..=1_000_000;
const AUDIT_EXAMPLE: &str =
    "write for example audit = { every = 4000 }: each page is compared once in 4000 epochs";

/// A key of a table with its value and both places.
pub(crate) struct Item<'t, 'i> {
    pub(crate) key_span: Range<usize>,
    pub(crate) value: &'t DeValue<'i>,
    pub(crate) span: Range<usize>,
}

impl Item<'_, '_> {
    /// Where to point at: the value; the key where the value has no place of its own.
    pub(crate) fn place(&self) -> Range<usize> {
        if self.span.is_empty() { self.key_span.clone() } else { self.span.clone() }
    }
}

/// Looks up a key together with its places.
pub(crate) fn item<'t, 'i>(table: &'t DeTable<'i>, key: &str) -> Option<Item<'t, 'i>> {
    let (key, value) = table.get_key_value(key)?;
    Some(Item { key_span: key.span(), value: value.get_ref(), span: value.span() })
}

/// What a value is, for a message.
pub(crate) fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The known name that was probably meant.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let distance = |k: &str| strsim::damerau_levenshtein(name, k);
    let best = known.into_iter().min_by_key(|k| distance(k))?;
    (distance(best) <= best.chars().count().div_ceil(3)).then_some(best)
}

/// Reads and checks everything; on failure, all that was found wrong.
pub(crate) fn read(text: &str, dir: &Path, registry: Registry) -> Result<Config, Vec<Problem>> {
    read_with(text, &KEYS, (dir, registry), |document| document.config(dir))
}

/// The same for strategies.
pub(crate) fn read_strategies(
    text: &str,
    dir: &Path,
    registry: Registry,
) -> Result<Strategies, Vec<Problem>> {
    read_with(text, &STRATEGY_KEYS, (dir, registry), |document| document.strategies(dir))
}

fn read_with<T>(
    text: &str,
    keys: &'static [&'static str],
    (dir, registry): (&Path, Registry),
    take: impl FnOnce(&mut Document<'_, '_>) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    let (root, mut errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        errors.dedup_by_key(|e| e.span());
        return Err(errors.iter().take(MOST_SYNTAX).map(syntax).collect());
    }
    let root = root.get_ref();
    if let Some(span) = too_deep(root) {
        return Err(vec![
            Problem::new(format!("nested more than {DEEPEST} levels deep"))
                .at(span, "no configuration needs this"),
        ]);
    }
    let mut document = Document { root, keys, meant: Vec::new(), problems: Vec::new() };
    shared::read(root, dir, registry, &mut document.problems);
    document.unknown_keys();
    match take(&mut document) {
        Some(taken) if document.problems.is_empty() => Ok(taken),
        _ => Err(document.problems),
    }
}

fn syntax(error: &toml::de::Error) -> Problem {
    let problem = Problem::new(format!("not TOML: {}", error.message()));
    match error.span() {
        Some(span) => problem.at(span, ""),
        None => problem,
    }
}

/// The place of the first value nested too deeply. A loop, not a recursion.
fn too_deep(root: &DeTable<'_>) -> Option<Range<usize>> {
    let mut rest: Vec<(&Spanned<DeValue<'_>>, u32)> = root.values().map(|v| (v, 1)).collect();
    while let Some((value, depth)) = rest.pop() {
        if depth > DEEPEST {
            return Some(value.span());
        }
        match value.get_ref() {
            DeValue::Table(t) => rest.extend(t.values().map(|v| (v, depth + 1))),
            DeValue::Array(a) => rest.extend(a.iter().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    None
}

struct Document<'t, 'i> {
    root: &'t DeTable<'i>,
    /// Those of the top level.
    keys: &'static [&'static str],
    /// Keys that an unknown one was probably meant to be: that they are missing needs no problem of its own.
    meant: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<'t, 'i> Document<'t, 'i> {
    /// `None` only with at least one problem noted; every part is read all the same.
    fn config(&mut self, dir: &Path) -> Option<Config> {
        let name = self.name();
        let staging = self.quantity("staging", STAGING, &STAGING_RANGE);
        let (heartbeat, detection) = self.times();
        let audit = self.audit();

        let mut ids = Ids::new();
        let guest = self.one(Kind::Guest, None, "it is the virtual machine to protect");
        let networks = self.many(Kind::Network, "net", &mut ids);
        let disks = self.many(Kind::Disk, "disk", &mut ids);
        let frontends = self.frontends();
        let transport = self.one(Kind::Transport, None, "it is how the two hosts reach each other");
        let policy = self.one(Kind::Policy, Some("fixed"), "it decides how often there is a checkpoint");
        let codec = self.one(Kind::Codec, Some("raw"), "it is how pages are written on the wire");
        let arbiter = self.one(
            Kind::Arbiter,
            None,
            "when the two hosts lose each other, it decides which of them owns the guest; without it both would run it",
        );
        Some(Config {
            name: name?,
            dir: dir.to_owned(),
            staging,
            heartbeat,
            detection,
            audit,
            guest: guest?,
            networks,
            disks,
            frontends,
            transport: transport?,
            policy: policy?,
            codec: codec?,
            arbiter: arbiter?,
        })
    }

    /// `None` only with at least one problem noted.
    fn strategies(&mut self, dir: &Path) -> Option<Strategies> {
        let trace = item(self.root, "trace");
        let path = trace.as_ref().and_then(|trace| trace.value.as_str());
        if path.is_none() {
            let example = "it is what to replay: write for example trace = \"redis-set.trace\"";
            let problem = match &trace {
                Some(item) => Problem::new("`trace` is not a string")
                    .at(item.place(), format!("expected a string, found {}", type_of(item.value))),
                None => Problem::new("missing key `trace`"),
            };
            self.missing("trace", problem.help(example));
        }
        let mut ids = Ids::new();
        let mut all = |kind, default| match item(self.root, Kind::name(kind)) {
            Some(_) => self.many(kind, kind.name(), &mut ids),
            None => {
                let why = "without a list of them there is one";
                plugin::default(kind, default, kind.name().to_owned(), why, &mut self.problems)
                    .into_iter()
                    .collect()
            }
        };
        let (policies, codecs) = (all(Kind::Policy, "fixed"), all(Kind::Codec, "raw"));
        Some(Strategies { trace: dir.join(path?), dir: dir.to_owned(), policies, codecs })
    }

    fn unknown_keys(&mut self) {
        let keys = self.keys;
        for key in self.root.keys().filter(|k| !keys.contains(&k.get_ref().as_ref())) {
            let label = match nearest(key.get_ref(), keys.iter().copied()) {
                Some(known) => {
                    self.meant.push(known);
                    format!("did you mean `{known}`?")
                }
                None => "not a key of the top level".into(),
            };
            let problem = Problem::new(format!("unknown key `{}`", key.get_ref())).at(key.span(), label);
            self.problems.push(problem.help(format!("known keys: {}", keys.join(", "))));
        }
    }

    fn missing(&mut self, key: &str, problem: Problem) {
        if !self.meant.contains(&key) {
            self.problems.push(problem);
        }
    }

    fn name(&mut self) -> Option<String> {
        let example = "it names the guest: write for example name = \"web\"";
        let Some(item) = item(self.root, "name") else {
            self.missing("name", Problem::new("missing key `name`").help(example));
            return None;
        };
        let Some(name) = item.value.as_str() else {
            let found = format!("expected a string, found {}", type_of(item.value));
            self.problems.push(Problem::new("`name` is not a string").at(item.place(), found).help(example));
            return None;
        };
        if !is_file_name(name, NAME_LENGTH) {
            let problem = Problem::new("`name` cannot be used in file names").at(item.place(), "");
            self.problems.push(problem.help(format!(
                "use 1 to {NAME_LENGTH} letters, digits, `.`, `_` and `-`, a letter or digit first"
            )));
            return None;
        }
        Some(name.to_owned())
    }

    /// The value of a key with a unit; `default` when it is absent or wrong.
    fn quantity<Q: Quantity>(&mut self, key: &str, default: Q, range: &RangeInclusive<Q>) -> Q {
        let Some(item) = item(self.root, key) else { return default };
        let read = item.value.as_str().and_then(Q::parse);
        if let Some(value) = read.filter(|v| range.contains(v)) {
            return value;
        }
        let problem = match (read, item.value) {
            (Some(_), _) => Problem::new(format!("`{key}` is out of range"))
                .at(item.place(), "")
                .help(format!("it can be from {} to {}", range.start().show(), range.end().show())),
            (None, value) => {
                let label = match value {
                    DeValue::String(_) => String::new(),
                    other => format!("expected a string, found {}", type_of(other)),
                };
                Problem::new(format!("`{key}` is not {}", Q::WHAT)).at(item.place(), label).help(format!(
                    "write a whole number and its unit, for example {key} = \"{}\"",
                    Q::EXAMPLE
                ))
            }
        };
        self.problems.push(problem);
        default
    }

    fn times(&mut self) -> (Duration, Duration) {
        let found_before = self.problems.len();
        let heartbeat = self.quantity("heartbeat", HEARTBEAT, &HEARTBEAT_RANGE);
        let detection = self.quantity("detection", DETECTION, &DETECTION_RANGE);
        let least = heartbeat * 3;
        if detection >= least || self.problems.len() > found_before {
            return (heartbeat, detection);
        }
        let shown = |name: &str, value: Duration| format!("`{name}` is {}", value.show());
        let problem = Problem::new("`detection` is shorter than three heartbeats");
        let problem = match (item(self.root, "detection"), item(self.root, "heartbeat")) {
            (Some(d), Some(h)) => problem.at(d.place(), "").beside(h.place(), "three of these"),
            (Some(d), None) => {
                problem.at(d.place(), format!("{}, its default", shown("heartbeat", heartbeat)))
            }
            (None, Some(h)) => {
                problem.at(h.place(), format!("{}, its default", shown("detection", detection)))
            }
            (None, None) => problem,
        };
        self.problems.push(problem.help(format!(
            "one late heartbeat must not look like a lost host: use detection = \"{}\" or more",
            least.show()
        )));
        (heartbeat, detection)
    }

    /// `None` where there is no audit, or a wrong one with its problem noted.
    fn audit(&mut self) -> Option<u32> {
        let audit = item(self.root, "audit")?;
        let Some(table) = audit.value.as_table() else {
            let label = format!("expected a table, found {}", type_of(audit.value));
            let problem = Problem::new("`audit` is not a table").at(audit.place(), label);
            self.problems.push(problem.help(AUDIT_EXAMPLE));
            return None;
        };
        for key in table.keys().filter(|k| k.get_ref() != "every") {
            let problem = Problem::new(format!("unknown key `{}`", key.get_ref()));
            self.problems.push(problem.at(key.span(), "not a key of `audit`").help("known keys: every"));
        }
        let Some(every) = item(table, "every") else {
            self.problems.push(Problem::new("missing key `every`").at(audit.place(), "").help(AUDIT_EXAMPLE));
            return None;
        };
        let read = every.value.as_integer().and_then(|i| u32::from_str_radix(i.as_str(), i.radix()).ok());
        let fitting = read.filter(|n| AUDIT_RANGE.contains(n));
        if fitting.is_none() {
            let problem = match every.value {
                DeValue::Integer(_) => Problem::new("`every` is out of range")
                    .at(every.place(), "")
                    .help(format!("it can be from {} to {} epochs", AUDIT_RANGE.start(), AUDIT_RANGE.end())),
                other => Problem::new("`every` is not a number of epochs")
                    .at(every.place(), format!("expected an integer, found {}", type_of(other)))
                    .help(AUDIT_EXAMPLE),
            };
            self.problems.push(problem);
        }
        fitting
    }

    /// The one table of a kind. Without a `default` plugin the table is required, because `why`.
    fn one(&mut self, kind: Kind, default: Option<&'static str>, why: &str) -> Option<Instance> {
        let id = kind.name().to_owned();
        let Some(item) = item(self.root, kind.name()) else {
            return match default {
                Some(name) => plugin::default(kind, name, id, why, &mut self.problems),
                None => {
                    let problem = Problem::new(format!("missing table `[{kind}]`")).help(why);
                    self.missing(kind.name(), problem.help(plugin::known(kind)));
                    None
                }
            };
        };
        let Some(table) = item.value.as_table() else {
            let label = match item.value {
                DeValue::Array(_) => format!("there can be one only: write [{kind}]"),
                other => format!("expected a table, found {}", type_of(other)),
            };
            self.problems.push(Problem::new(format!("`{kind}` is not a table")).at(item.place(), label));
            return None;
        };
        plugin::instance(kind, table, item.place(), id, default, &mut self.problems)
    }

    /// All tables of a kind that may be there several times.
    fn many(&mut self, kind: Kind, prefix: &str, ids: &mut Ids) -> Vec<Instance> {
        let Some(item) = item(self.root, kind.name()) else { return Vec::new() };
        let tables = item.value.as_array().filter(|a| a.iter().all(|t| t.get_ref().is_table()));
        let Some(tables) = tables else {
            let label = match item.value {
                DeValue::Table(_) => format!("there can be several: write [[{kind}]]"),
                _ => format!("write [[{kind}]]"),
            };
            self.problems
                .push(Problem::new(format!("`{kind}` is not a list of tables")).at(item.place(), label));
            return Vec::new();
        };
        let mut instances = Vec::new();
        for (position, entry) in tables.iter().enumerate() {
            let Some(table) = entry.get_ref().as_table() else { continue };
            let id = ids.take(table, entry.span(), format!("{prefix}{position}"), &mut self.problems);
            let mut table = table.clone();
            table.remove("id");
            if kind == Kind::Disk {
                frontend::KEYS.iter().for_each(|key| drop(table.remove(*key)));
            }
            instances.extend(plugin::instance(kind, &table, entry.span(), id, None, &mut self.problems));
        }
        instances
    }

    /// Of the disks, in their order.
    fn frontends(&mut self) -> Vec<Frontend> {
        let disks = item(self.root, Kind::Disk.name()).and_then(|disks| disks.value.as_array());
        let tables = disks.into_iter().flatten().filter_map(|disk| disk.get_ref().as_table());
        tables.map(|table| frontend::parse(table, &mut self.problems)).collect()
    }
}
