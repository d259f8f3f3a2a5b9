//! Arbiter plugin: manual.
