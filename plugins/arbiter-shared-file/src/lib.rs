//! Arbiter plugin: shared-file.
