//! `aventine schema`: what a configuration may be, for editors.

use crate::exit::Exit;
use crate::output::{print, tell};
use crate::run::load;
use aventine_api::PluginEntry;
use std::path::Path;

/// Prints the schema of the whole file, or of one plugin's table.
pub(crate) fn schema(plugin: Option<&str>, config: Option<&Path>) -> Exit {
    // It stays loaded; what it sets up does not matter here.
    if let Some(Err(exit)) = config.map(load) {
        return exit;
    }
    let schema = match plugin.map(find) {
        None => aventine_config::schema(),
        Some(Ok(entry)) => aventine_config::plugin_schema(entry),
        Some(Err(problem)) => {
            tell(format_args!("error: {problem}"));
            return Exit::Usage;
        }
    };
    print(serde_json::to_string_pretty(&schema).unwrap_or_else(|e| e.to_string()));
    Exit::Done
}

fn named(entry: &PluginEntry) -> String {
    format!("{}/{}", entry.factory.kind(), entry.name)
}

/// The plugin that is meant by `NAME` or `KIND/NAME`.
fn find(plugin: &str) -> Result<&'static PluginEntry, String> {
    let all = aventine_registry::all();
    let meant: Vec<_> = all.iter().filter(|e| e.name == plugin || named(e) == plugin).collect();
    let list = |entries: &[&&PluginEntry]| entries.iter().map(|e| named(e)).collect::<Vec<_>>().join(", ");
    match meant.as_slice() {
        [entry] => Ok(entry),
        [] => {
            Err(format!("There is no plugin {plugin:?}; known are {}", list(&all.iter().collect::<Vec<_>>())))
        }
        several => Err(format!("{plugin:?} can be one of {}", list(several))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_config::Config;
    use jsonschema::Validator;
    use serde_json::Value;

    const EXAMPLE: &str = include_str!("../../../examples/two-hosts.toml");

    fn accepts(validator: &Validator, text: &str) -> bool {
        validator.is_valid(&toml::from_str::<Value>(text).unwrap())
    }

    /// The schema and the program must not contradict each other: what each key may be is written down twice.
    #[test]
    fn the_schema_says_what_the_program_says() {
        let validator = jsonschema::validator_for(&aventine_config::schema()).unwrap();
        let both = |text: &str| {
            let program = Config::parse(text, Path::new("/etc/web.toml"));
            let schema = accepts(&validator, text);
            assert_eq!(schema, program.is_ok(), "{text}\n{:?}", program.err().map(|e| e.to_string()));
            schema
        };
        // Comments mention keys, too.
        let example: String =
            EXAMPLE.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert!(both(&example));
        for (from, to, fine) in [
            ("name = \"web\"", "name = \"we b\"", false),
            ("name = \"web\"", "", false),
            ("staging = \"512MiB\"", "staging = 512", false),
            ("staging = \"512MiB\"", "stagings = \"512MiB\"", false),
            ("heartbeat = \"50ms\"", "heartbeat = \"50\"", false),
            ("audit = { every = 4000 }", "audit = { every = 0 }", false),
            ("audit = { every = 4000 }", "audit = { each = 4000 }", false),
            (
                "audit = { every = 4000 }",
                "plugins = { load = [], built_in = true, unsafe_writable = true }",
                true,
            ),
            ("audit = { every = 4000 }", "plugins = { load = \"x.so\" }", false),
            ("audit = { every = 4000 }", "plugins = { built_in = 1 }", false),
            ("audit = { every = 4000 }", "plugins = { built_ins = true }", false),
            ("plugin = \"qemu\"", "plugin = \"xen\"", false),
            ("plugin = \"qemu\"", "", false),
            ("[[network]]", "[[network]]\nid = \"front\"", true),
            ("[[network]]", "[[network]]\nid = \"\"", false),
            ("[[network]]", "[network]", false),
            ("limit = \"64MiB\"", "limit = \"64MB\"", false),
            ("device = \"tap-web\"", "uplink = { stream = \"passt.sock\" }", true),
            ("device = \"tap-web\"", "uplink = { pipe = \"passt.sock\" }", false),
            ("device = \"tap-web\"", "", false),
            ("plugin = \"userspace\"", "plugin = \"plug\"", true),
            ("plugin = \"block-remus\"", "plugin = \"block-remus\"\nsize = 1", false),
            ("plugin = \"block-remus\"", "plugin = \"block-remus\"\nfrontend = \"vhost-user\"", true),
            ("plugin = \"block-remus\"", "plugin = \"block-remus\"\nfrontend = \"nbd\"", true),
            ("plugin = \"block-remus\"", "plugin = \"block-remus\"\nfrontend = \"scsi\"", false),
            (
                "plugin = \"block-remus\"",
                "plugin = \"block-remus\"\nfrontend = \"vhost-user\"\nblock_size = 4096",
                true,
            ),
            (
                "plugin = \"block-remus\"",
                "plugin = \"block-remus\"\nfrontend = \"vhost-user\"\nblock_size = 1000",
                false,
            ),
            ("plugin = \"block-remus\"", "plugin = \"block-remus\"\nfrontend = true", false),
            ("plugin = \"userspace\"", "plugin = \"userspace\"\nfrontend = \"nbd\"", false),
            ("tls = {", "unsafe_plaintext = true\n# tls = {", true),
            ("tls = {", "# tls = {", false),
            ("[policy]", "[policy]\nintervall = \"1ms\"", false),
        ] {
            assert!(example.contains(from), "{from}");
            assert_eq!(both(&example.replacen(from, to, 1)), fine, "{from} as {to}");
        }
    }

    #[test]
    fn each_plugins_table_has_a_schema_that_tells_its_keys() {
        for entry in aventine_registry::all() {
            let schema = aventine_config::plugin_schema(entry);
            jsonschema::validator_for(&schema).unwrap();
            let name = named(entry);
            assert_eq!(schema["additionalProperties"], false, "{name}");
            assert_eq!(schema["properties"]["plugin"]["const"], entry.name);
            for (key, value) in schema["properties"].as_object().unwrap() {
                assert!(value["description"].is_string(), "{name}: nothing is said about `{key}`");
            }
        }
    }
}
