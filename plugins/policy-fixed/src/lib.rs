//! Epoch policy plugin: a fixed interval.
