//! `[plugins]`: where plugins come from, settled before any plugin's table is read.

use crate::document::{Item, item, nearest, type_of};
use crate::report::Problem;
use aventine_registry::Trust;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// What becomes of the plugins that the program knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registry {
    /// Those that the file names are loaded, for good.
    Changed,
    /// The file is only looked at.
    AsItIs,
}

const KEYS: [&str; 3] = ["load", "built_in", "unsafe_writable"];
const EXAMPLE: &str = "write for example load = [\"/usr/lib/aventine/net_example.so\"]";
/// Most files of one configuration.
const MOST: usize = 64;

/// Reads `[plugins]` of `root`, and loads what it names; relative paths are meant from `dir`.
pub(crate) fn read(root: &DeTable<'_>, dir: &Path, registry: Registry, problems: &mut Vec<Problem>) {
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
    let built_in = boolean(table, "built_in", true, problems);
    if registry == Registry::Changed && !built_in {
        aventine_registry::hide_built_in();
    }
    let trust = match boolean(table, "unsafe_writable", false, problems) {
        true => Trust::Anybody,
        false => Trust::OwnersOnly,
    };
    if let Some(files) = item(table, "load") {
        load_all(&files, dir, (registry, trust), problems);
    }
}

/// The value of a key; `default` when it is absent or wrong.
fn boolean(table: &DeTable<'_>, key: &str, default: bool, problems: &mut Vec<Problem>) -> bool {
    let Some(item) = item(table, key) else { return default };
    item.value.as_bool().unwrap_or_else(|| {
        let label = format!("expected a boolean, found {}", type_of(item.value));
        problems.push(Problem::new(format!("`{key}` is not a boolean")).at(item.place(), label));
        default
    })
}

fn load_all(
    files: &Item<'_, '_>,
    dir: &Path,
    (registry, trust): (Registry, Trust),
    problems: &mut Vec<Problem>,
) {
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
            Some(_) if registry == Registry::AsItIs => {}
            Some(path) => {
                if let Err(error) = aventine_registry::load(&dir.join(path), trust) {
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
