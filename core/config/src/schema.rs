//! JSON Schema of the whole file, for editors that complete and check TOML by one.
//!
//! It says what each key may be where that can be said by a schema; what cannot (names that are taken, times that must fit
//! together) is left to `aventine check`.

use crate::document::{AUDIT_RANGE, NAME_LENGTH};
use crate::frontend;
use crate::plugin::{ID_LENGTH, SINGLE};
use aventine_api::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use aventine_api::{DurationText, Kind, PluginEntry, SizeText};
use serde_json::{Map, Value, json};

/// The schema of a configuration, with every plugin that is known now.
pub fn schema() -> Value {
    let mut properties = Map::new();
    let mut add = |name: &str, schema: Value| drop(properties.insert(name.to_owned(), schema));
    add("name", file_name(NAME_LENGTH, "Names the guest in messages and files."));
    add(
        "staging",
        text::<SizeText>(
            "Most memory for captured pages on the primary, and for checkpoints not yet complete on the standby; 256MiB if not \
             set.",
        ),
    );
    add("heartbeat", text::<DurationText>("Each side says this often that it is alive; 50ms if not set."));
    add(
        "detection",
        text::<DurationText>(
            "A side that is silent for so long counts as lost; at least three heartbeats, 500ms if not set.",
        ),
    );
    add("audit", audit());
    add("plugins", plugins());
    for (kind, default) in KINDS {
        let one = one_of(kind, default);
        add(kind.name(), if SINGLE.contains(&kind) { one } else { json!({ "type": "array", "items": one }) });
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An Aventine configuration",
        "type": "object",
        "properties": properties,
        "required": ["name", "guest", "transport", "arbiter"],
        "additionalProperties": false,
    })
}

/// The schema of a plugin's own table, with the keys that every plugin's table has.
pub fn plugin_schema(entry: &PluginEntry) -> Value {
    table(entry, false)
}

/// The kinds, and the plugin that each has where its table names none.
const KINDS: [(Kind, Option<&str>); 7] = [
    (Kind::Guest, None),
    (Kind::Network, None),
    (Kind::Disk, None),
    (Kind::Transport, None),
    (Kind::Policy, Some("fixed")),
    (Kind::Codec, Some("raw")),
    (Kind::Arbiter, None),
];

fn one_of(kind: Kind, default: Option<&str>) -> Value {
    let all = aventine_registry::all().into_iter().filter(|e| e.factory.kind() == kind);
    let tables: Vec<_> = all.map(|entry| table(entry, default == Some(entry.name))).collect();
    json!({ "oneOf": tables })
}

fn table(entry: &PluginEntry, is_default: bool) -> Value {
    let own = serde_json::from_str((entry.schema)().as_str());
    // A schema that is not one of an object, or not one at all, says nothing about keys.
    let mut schema: Map<String, Value> = own.unwrap_or_default();
    schema.entry("type").or_insert_with(|| "object".into());
    schema.entry("description").or_insert_with(|| entry.summary.into());
    let mut properties = Map::new();
    properties.insert("plugin".into(), json!({ "const": entry.name, "description": entry.summary }));
    if !SINGLE.contains(&entry.factory.kind()) {
        let what = "Names this table in messages and files.";
        properties.insert("id".into(), file_name(ID_LENGTH, what));
    }
    if entry.factory.kind() == Kind::Disk {
        let what = "How the guest reaches the disk; nbd if not set.";
        properties.insert("frontend".into(), json!({ "enum": frontend::NAMES, "description": what }));
        let what = "Bytes of the guest's logical block, with frontend = \"vhost-user\"; 512 if not set.";
        properties.insert("block_size".into(), json!({ "enum": frontend::BLOCKS, "description": what }));
    }
    if let Some(Value::Object(own)) = schema.remove("properties") {
        properties.extend(own);
    }
    schema.insert("properties".into(), properties.into());
    if !is_default
        && let Some(required) = schema.entry("required").or_insert_with(|| json!([])).as_array_mut()
    {
        required.push("plugin".into());
    }
    schema.into()
}

fn text<T: JsonSchema>(description: &str) -> Value {
    let mut schema: Schema = T::json_schema(&mut SchemaGenerator::default());
    schema.insert("description".into(), description.into());
    schema.to_value()
}

fn file_name(longest: usize, description: &str) -> Value {
    let pattern = format!("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}$", longest - 1);
    json_schema!({ "type": "string", "pattern": pattern, "description": description }).to_value()
}

fn audit() -> Value {
    let (least, most) = (AUDIT_RANGE.start(), AUDIT_RANGE.end());
    let every = json!({ "type": "integer", "minimum": least, "maximum": most, "description": "In epochs." });
    json!({
        "description": "Within so many epochs, each page of guest memory is compared between the hosts.",
        "type": "object",
        "properties": { "every": every },
        "required": ["every"],
        "additionalProperties": false,
    })
}

fn plugins() -> Value {
    json!({
        "description": "Where plugins come from besides the program itself.",
        "type": "object",
        "properties": {
            "load": {
                "description": "Shared objects with plugins; relative paths are meant from this file.",
                "type": "array",
                "items": { "type": "string" },
            },
            "built_in": {
                "description": "Whether the plugins in the program are known besides those that are loaded.",
                "type": "boolean",
            },
            "unsafe_writable": {
                "description": "Whether shared objects are loaded that others can change.",
                "type": "boolean",
            },
        },
        "additionalProperties": false,
    })
}
