//! JSON Schema of a plugin's table, from the type that it is parsed into.

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

/// The schema of a table that is read into `T`, as [`PluginEntry::schema`](crate::PluginEntry::schema) wants it. Whoever
/// derives `JsonSchema` for `T` from [`aventine_api::schemars`](schemars) says so: `#[schemars(crate =
/// "aventine_api::schemars")]`. Comments of the fields become what an editor shows.
pub fn schema<T: JsonSchema>() -> String {
    // It becomes a part of the whole file's schema: it must not refer to a place in a document of its own.
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    without_null(&mut schema);
    schema.remove("title");
    schema.to_value().to_string()
}

/// TOML has no null: a key that may be left out is not one that may be null.
fn without_null(schema: &mut Schema) {
    if schema.get("default").is_some_and(|value| value.is_null()) {
        schema.remove("default");
    }
    if let Some(types) = schema.get_mut("type").and_then(|t| t.as_array_mut()) {
        types.retain(|t| t != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(choices) = schema.get_mut("anyOf").and_then(|c| c.as_array_mut()) {
        choices.retain(|c| c.get("type").is_none_or(|t| t != "null"));
    }
    transform_subschemas(&mut without_null, schema);
}

/// Stands in a schema for a key that [`Quantity`](crate::units::Quantity) reads as a duration: `#[schemars(with =
/// "Option<aventine_api::DurationText>")]`.
pub struct DurationText;

/// Stands in a schema for a key that [`Quantity`](crate::units::Quantity) reads as a size.
pub struct SizeText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ *(us|ms|s)$", "examples": ["50ms"] })
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ *(KiB|MiB|GiB)$", "examples": ["256MiB"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comments of the type are the table's description.
    #[derive(JsonSchema, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is made")]
    struct Keys {
        /// Says how long.
        #[schemars(with = "Option<DurationText>")]
        interval: Option<String>,
        #[serde(default)]
        deep: Option<Deep>,
        name: String,
    }

    #[derive(JsonSchema, serde::Deserialize)]
    #[expect(dead_code, reason = "only its schema is made")]
    struct Deep {
        count: u32,
    }

    #[test]
    fn a_table_has_no_null_and_no_reference() {
        let text = schema::<Keys>();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(!text.contains("null") && !text.contains("$ref") && !text.contains("$defs"), "{text}");
        assert_eq!(found["required"], serde_json::json!(["name"]));
        assert_eq!(found["additionalProperties"], false);
        assert_eq!(found["properties"]["interval"]["description"], "Says how long.");
        assert_eq!(found["properties"]["interval"]["type"], "string");
        assert_eq!(found["description"], "Comments of the type are the table's description.");
    }
}
