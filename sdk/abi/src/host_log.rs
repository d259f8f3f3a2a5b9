//! The host's end of a plugin's log: makes an event of this program's `tracing` of each record.
//!
//! `tracing` wants a static description of each place that tells something. One is made, and kept for ever, for each
//! combination of level, target and names of fields. A shared object has only so many of them; one that makes up new ones
//! gets no more than [`MOST`].

use crate::v1::{LogV1, RecordV1};
use abi_stable::std_types::RStr;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_core::field::{FieldSet, Value};
use tracing_core::metadata::Kind;
use tracing_core::{Callsite, Event, Interest, Level, Metadata, callsite, dispatcher, identify_callsite};

/// Most descriptions for one shared object.
const MOST: usize = 4096;
/// Most fields of a record, the message included; what a plugin tells beyond is left out.
const FIELDS: usize = 16;

type Key = (u8, String, Vec<String>);

#[derive(Default)]
pub(crate) struct HostLog {
    places: Mutex<HashMap<Key, &'static Place>>,
}

/// A place in the plugin that tells something.
struct Place {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Place {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata.get().expect("set before the place is registered")
    }
}

fn level(number: u8) -> Level {
    match number {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

impl HostLog {
    /// The place that tells records like this one; `None` when there are too many.
    fn place(&self, number: u8, target: &str, fields: Vec<String>) -> Option<&'static Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (number, target.to_owned(), fields);
        if let Some(place) = places.get(&key) {
            return Some(place);
        }
        if places.len() == MOST {
            return None;
        }
        let names = std::iter::once("message").chain(key.2.iter().map(|n| &*String::leak(n.clone())));
        let names: &'static [&'static str] = Vec::leak(names.collect());
        let place: &'static Place = Box::leak(Box::new(Place { metadata: OnceLock::new() }));
        let fields = FieldSet::new(names, identify_callsite!(place));
        let target = String::leak(target.to_owned());
        let metadata = Metadata::new("plugin", target, level(number), None, None, None, fields, Kind::EVENT);
        let _ = place.metadata.set(metadata);
        callsite::register(place);
        places.insert(key, place);
        Some(place)
    }
}

impl LogV1 for HostLog {
    fn enabled(&self, number: u8, target: RStr<'_>) -> bool {
        let level = level(number);
        if level > tracing_core::LevelFilter::current() {
            return false;
        }
        let Some(place) = self.place(number, target.as_str(), Vec::new()) else { return true };
        dispatcher::get_default(|d| d.enabled(place.metadata.get().expect("set when it was made")))
    }

    fn log(&self, record: RecordV1<'_>) {
        let fields = &record.fields.as_slice()[..record.fields.len().min(FIELDS - 1)];
        let names = fields.iter().map(|f| f.name.as_str().to_owned()).collect();
        let Some(place) = self.place(record.level, record.target.as_str(), names) else { return };
        let metadata = place.metadata.get().expect("set when it was made");
        let told = std::iter::once(record.message.as_str()).chain(fields.iter().map(|f| f.value.as_str()));
        let told: Vec<_> = told.map(tracing_core::field::display).collect();
        let mut pairs: Vec<_> =
            metadata.fields().iter().zip(told.iter().map(|t| Some(t as &dyn Value))).collect();
        // The number of values is part of a type; absent ones are no values.
        let spare = metadata.fields().field("message").expect("every place has it");
        let values: [_; FIELDS] = std::array::from_fn(|at| match pairs.get_mut(at) {
            Some((field, value)) => (field.clone(), value.take()),
            None => (spare.clone(), None),
        });
        let values = values.each_ref().map(|(field, value)| (field, *value));
        dispatcher::get_default(|d| d.event(&Event::new(metadata, &metadata.fields().value_set(&values))));
    }
}
