//! The log: what a plugin tells by `tracing` goes to the host's `tracing`, with its level, target and fields.
//!
//! A shared object has a `tracing` of its own, with nobody listening. [`forward`] puts a listener there; [`HostLog`] is the
//! other end, which makes an event of the host's own of each record. Spans are not carried.

use abi_stable::std_types::{RBox, RSlice, RStr};
use abi_stable::{StableAbi, sabi_trait};
use std::fmt::{Debug, Write};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Field, Interest, Level, Metadata, Subscriber};

/// A field of a record, as text.
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct FieldV1<'a> {
    pub name: RStr<'a>,
    pub value: RStr<'a>,
}

/// Something that a plugin tells.
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct RecordV1<'a> {
    /// 1 is an error, 5 a trace.
    pub level: u8,
    pub target: RStr<'a>,
    pub message: RStr<'a>,
    pub fields: RSlice<'a, FieldV1<'a>>,
}

/// The host's log, for one shared object. Any thread; never blocks but for the host's own output.
#[sabi_trait]
pub trait LogV1: Send + Sync {
    /// Whether somebody wants records of this level and target.
    fn enabled(&self, level: u8, target: RStr<'_>) -> bool;
    fn log(&self, record: RecordV1<'_>);
}

pub(super) type LogBox = LogV1_TO<'static, RBox<()>>;

/// Shared object's side: everything told by `tracing` in it, and its panics, go to `log` from now on.
pub(super) fn forward(log: LogBox) {
    // A plugin that has set a listener of its own keeps it.
    let _ = tracing_core::dispatcher::set_global_default(Dispatch::new(Forward(log)));
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
        tracing::error!(place, "the plugin panicked: {said}");
    }));
}

struct Forward(LogBox);

const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

fn number(level: Level) -> u8 {
    LEVELS.iter().position(|l| *l == level).map_or(5, |at| at as u8 + 1)
}

impl Subscriber for Forward {
    /// The host's answer may change, so it is asked each time.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.0.enabled(number(*metadata.level()), metadata.target().into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        let fields = told.fields.iter();
        let fields: Vec<_> = fields
            .map(|(name, value)| FieldV1 { name: (*name).into(), value: value.as_str().into() })
            .collect();
        self.0.log(RecordV1 {
            level: number(*event.metadata().level()),
            target: event.metadata().target().into(),
            message: told.message.as_str().into(),
            fields: RSlice::from_slice(&fields),
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A record's fields as text.
#[derive(Default)]
struct Told {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl tracing_core::field::Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // A value that cannot be shown is left out.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}
