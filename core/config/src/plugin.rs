//! The tables of the plugins.
//!
//! The host reads `plugin` and, where a kind may be there several times, `id`. Everything else goes to the plugin as
//! text, and the path in the plugin's error is followed in the table with positions.

use crate::Instance;
use crate::document::{Item, item, nearest, type_of};
use crate::report::Problem;
use aventine_api::{ConfigError, ConfigProblem, Kind, PluginEntry};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

pub(crate) const ID_LENGTH: usize = 24;
/// Most unknown keys of one table that are reported.
const MOST_UNKNOWN: usize = 16;
/// Kinds that there can be one of: their plugin's id is the kind's name.
pub(crate) const SINGLE: [Kind; 5] = [Kind::Guest, Kind::Transport, Kind::Policy, Kind::Codec, Kind::Arbiter];

/// Whether `name` can be part of a file name anywhere.
pub(crate) fn is_file_name(name: &str, longest: usize) -> bool {
    name.len() <= longest
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A sentence with the plugins of a kind.
pub(crate) fn known(kind: Kind) -> String {
    match aventine_registry::names(kind).as_slice() {
        [] => format!("this program has no {kind} plugin"),
        names => format!("known {kind} plugins: {}", names.join(", ")),
    }
}

/// The ids in use, and where each was given.
pub(crate) struct Ids {
    taken: Vec<(String, Range<usize>)>,
}

impl Ids {
    pub(crate) fn new() -> Ids {
        Ids { taken: Vec::new() }
    }

    /// The id of the table at `header`: its own, or `default`.
    pub(crate) fn take(
        &mut self,
        table: &DeTable<'_>,
        header: Range<usize>,
        default: String,
        problems: &mut Vec<Problem>,
    ) -> String {
        let given = item(table, "id");
        let place = given.as_ref().map_or(header, Item::place);
        let id = match &given {
            None => default,
            Some(item) => match item.value.as_str().filter(|id| is_file_name(id, ID_LENGTH)) {
                Some(id) => id.to_owned(),
                None => {
                    problems.push(bad_id(item));
                    return default;
                }
            },
        };
        if let Some(kind) = SINGLE.into_iter().find(|k| k.name() == id) {
            problems
                .push(Problem::new(format!("the id `{id}` is taken")).at(place, format!("names [{kind}]")));
        } else if let Some((_, first)) = self.taken.iter().find(|(i, _)| *i == id) {
            let problem = Problem::new(format!("the id `{id}` is used twice"));
            problems.push(problem.at(place, "used again").beside(first.clone(), "first used here"));
        } else {
            self.taken.push((id.clone(), place));
        }
        id
    }
}

fn bad_id(item: &Item<'_, '_>) -> Problem {
    match item.value {
        DeValue::String(_) => Problem::new("`id` cannot be used in file names")
            .at(item.place(), "")
            .help(format!("use 1 to {ID_LENGTH} letters, digits, `.`, `_` and `-`, a letter or digit first")),
        other => Problem::new("`id` is not a string")
            .at(item.place(), format!("expected a string, found {}", type_of(other))),
    }
}

/// The plugin of a kind whose table is absent.
pub(crate) fn default(
    kind: Kind,
    name: &str,
    id: String,
    why: &str,
    problems: &mut Vec<Problem>,
) -> Option<Instance> {
    let missing = || Problem::new(format!("missing table `[{kind}]`")).help(why);
    let Some(entry) = aventine_registry::find(kind, name) else {
        problems.push(missing().help(known(kind)));
        return None;
    };
    if let Err(e) = (entry.validate)("") {
        problems.push(missing().help(format!("the {kind} plugin `{name}` cannot do without: {e}")));
        return None;
    }
    Some(Instance { id, entry, config: String::new() })
}

/// Reads the table of a plugin, whose header is at `header` and whose `id` was taken out if it may have one.
pub(crate) fn instance(
    kind: Kind,
    table: &DeTable<'_>,
    header: Range<usize>,
    id: String,
    default: Option<&'static str>,
    problems: &mut Vec<Problem>,
) -> Option<Instance> {
    let entry = find(kind, table, header.clone(), default, problems)?;
    let mut own = table.clone();
    own.remove("plugin");
    let config = Table { kind, entry, table: own, header }.check(problems)?;
    Some(Instance { id, entry, config })
}

/// The plugin that a table names.
fn find(
    kind: Kind,
    table: &DeTable<'_>,
    header: Range<usize>,
    default: Option<&'static str>,
    problems: &mut Vec<Problem>,
) -> Option<&'static PluginEntry> {
    let given = item(table, "plugin");
    let place = given.as_ref().map_or(header, Item::place);
    let problem = match (given.map(|i| i.value), default) {
        (Some(DeValue::String(name)), _) => match named(kind, name) {
            Ok(entry) => return Some(entry),
            Err(label) => Problem::new(format!("unknown {kind} plugin `{name}`")).at(place, label),
        },
        (Some(other), _) => Problem::new("`plugin` is not a string")
            .at(place, format!("expected a string, found {}", type_of(other))),
        (None, Some(name)) => match named(kind, name) {
            Ok(entry) => return Some(entry),
            Err(_) => Problem::new(format!("missing key `plugin`; there is no {kind} plugin `{name}`"))
                .at(place, ""),
        },
        (None, None) => Problem::new("missing key `plugin`").at(place, "which plugin serves this?"),
    };
    problems.push(problem.help(known(kind)));
    None
}

/// The plugin of this name, or what to say about the name.
fn named(kind: Kind, name: &str) -> Result<&'static PluginEntry, String> {
    aventine_registry::find(kind, name).ok_or_else(|| {
        let other = aventine_registry::all().into_iter().find(|e| e.name == name);
        match (other, nearest(name, aventine_registry::names(kind))) {
            (Some(other), _) => format!("this is a plugin for [{}]", other.factory.kind()),
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => "not a plugin of this program".into(),
        }
    })
}

/// A plugin's own keys.
struct Table<'i> {
    kind: Kind,
    entry: &'static PluginEntry,
    table: DeTable<'i>,
    header: Range<usize>,
}

impl Table<'_> {
    /// Gives the keys to the plugin; answers them as text. A plugin stops at its first error, so an unknown key is
    /// noted, taken away and the rest given again.
    fn check(mut self, problems: &mut Vec<Problem>) -> Option<String> {
        let mut text = self.text(problems)?;
        let mut meant = Vec::new();
        let mut unknown = 0;
        loop {
            let error = match (self.entry.validate)(&text) {
                Ok(()) => return (unknown == 0).then_some(text),
                Err(error) => error,
            };
            let consequence =
                matches!(&error.problem, ConfigProblem::MissingKey { key } if meant.contains(key));
            if !consequence {
                problems.push(self.problem(&error));
            }
            let ConfigProblem::UnknownKey { key, known } = &error.problem else { return None };
            meant.extend(nearest(key, known.iter().map(String::as_str)).map(str::to_owned));
            unknown += 1;
            if unknown == MOST_UNKNOWN || !remove(&mut self.table, &error.path, key) {
                return None;
            }
            text = self.text(problems)?;
        }
    }

    fn text(&self, problems: &mut Vec<Problem>) -> Option<String> {
        // A number that needs more than 64 bits is the one thing that TOML can say and a table cannot hold.
        let spanned = Spanned::new(self.header.clone(), DeValue::Table(self.table.clone()));
        let table = toml::Table::deserialize(ValueDeserializer::from(spanned));
        let written = table
            .and_then(|table| toml::to_string(&table).map_err(<toml::de::Error as serde::de::Error>::custom));
        written
            .map_err(|e| {
                let place = e.span().filter(|s| !s.is_empty()).unwrap_or_else(|| self.header.clone());
                problems.push(Problem::new("the number is out of range").at(place, ""));
            })
            .ok()
    }

    fn problem(&self, error: &ConfigError) -> Problem {
        let whose = format!("{} plugin `{}`", self.kind, self.entry.name);
        let problem = Problem::new(error.to_string());
        match &error.problem {
            ConfigProblem::UnknownKey { key, known } => {
                let label = match nearest(key, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("not a key of {whose}"),
                };
                let place = self.follow(&error.path, Some(key));
                problem.at(place, label).help(match known.as_slice() {
                    [] => format!("{whose} knows no key here"),
                    known => format!("keys of {whose} here: {}", known.join(", ")),
                })
            }
            ConfigProblem::MissingKey { .. } => {
                problem.at(self.follow(&error.path, None), format!("{whose} needs it here"))
            }
            ConfigProblem::BadValue { help, .. } => {
                let problem = problem.at(self.follow(&error.path, None), "");
                help.iter().fold(problem, |p, text| p.help(text))
            }
        }
    }

    /// The place of the value at `path`, or of the key `key` in it; as near as the table goes.
    fn follow(&self, path: &[String], key: Option<&str>) -> Range<usize> {
        let mut place = self.header.clone();
        let mut table = Some(&self.table);
        let mut array = None;
        for step in path {
            if let Some(found) = table.and_then(|t| item(t, step)) {
                place = found.place();
                (table, array) = (found.value.as_table(), found.value.as_array());
            } else if let Some(found) = array.and_then(|a: &toml::de::DeArray<'_>| a.get(position(step)?)) {
                place = found.span();
                (table, array) = (found.get_ref().as_table(), found.get_ref().as_array());
            } else {
                return place;
            }
        }
        key.and_then(|k| item(table?, k)).map_or(place, |found| found.key_span)
    }
}

/// Takes a key away; `false` when it is not there.
fn remove(table: &mut DeTable<'_>, path: &[String], key: &str) -> bool {
    let Some((step, path)) = path.split_first() else { return table.remove(key).is_some() };
    match table.get_mut(step.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => remove(inner, path, key),
        _ => false,
    }
}

/// An array position as plugins write it: `3`, or `[3]` as serde's path has it.
fn position(step: &str) -> Option<usize> {
    step.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
