//! `[plugins]`: the shared objects that are loaded before any plugin's table is read.

use crate::document::{Item, item, nearest, type_of};
use crate::report::Problem;
use aventine_registry::{LoadError, Trust};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Loads one shared object.
pub(crate) type Load<'a> = &'a dyn Fn(&Path, Trust) -> Result<(), LoadError>;

const KEYS: [&str; 2] = ["load", "unsafe_writable"];
const EXAMPLE: &str = "write for example load = [\"/usr/lib/aventine/net_example.so\"]";
/// Most files of one configuration.
const MOST: usize = 64;

/// Loads what `[plugins]` of `root` names; relative paths are meant from `dir`.
pub(crate) fn load(root: &DeTable<'_>, dir: &Path, load: Load<'_>, problems: &mut Vec<Problem>) {
    let Some(plugins) = item(root, "plugins") else { return };
    let Some(table) = plugins.value.as_table() else {
        let label = format!("expected a table, found {}", type_of(plugins.value));
        problems.push(Problem::new("`plugins` is not a table").at(plugins.place(), label).help(EXAMPLE));
        return;
    };
    for key in table.keys().filter(|k| !KEYS.contains(&k.get_ref().as_ref())) {
        let label = match nearest(key.get_ref(), KEYS) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "not a key of `plugins`".into(),
        };
        let problem = Problem::new(format!("unknown key `{}`", key.get_ref())).at(key.span(), label);
        problems.push(problem.help(format!("known keys: {}", KEYS.join(", "))));
    }
    let trust = match item(table, "unsafe_writable").map(|i| (i.value.as_bool(), i)) {
        None | Some((Some(false), _)) => Trust::OwnersOnly,
        Some((Some(true), _)) => Trust::Anybody,
        Some((None, item)) => {
            let label = format!("expected a boolean, found {}", type_of(item.value));
            problems.push(Problem::new("`unsafe_writable` is not a boolean").at(item.place(), label));
            Trust::OwnersOnly
        }
    };
    if let Some(files) = item(table, "load") {
        load_all(&files, dir, trust, load, problems);
    }
}

fn load_all(files: &Item<'_, '_>, dir: &Path, trust: Trust, load: Load<'_>, problems: &mut Vec<Problem>) {
    let DeValue::Array(list) = files.value else {
        let label = format!("expected an array of strings, found {}", type_of(files.value));
        problems.push(Problem::new("`load` is not a list of files").at(files.place(), label).help(EXAMPLE));
        return;
    };
    if list.len() > MOST {
        let problem = Problem::new(format!("`load` names more than {MOST} files"));
        problems.push(problem.at(files.place(), "no configuration needs this"));
        return;
    }
    for file in list.iter() {
        match file.get_ref().as_str() {
            Some(path) => {
                if let Err(error) = load(&dir.join(path), trust) {
                    problems.push(Problem::new(error.chain()).at(file.span(), "not loaded"));
                }
            }
            None => {
                let label = format!("expected a string, found {}", type_of(file.get_ref()));
                problems
                    .push(Problem::new("`load` is not a list of files").at(file.span(), label).help(EXAMPLE));
            }
        }
    }
}
