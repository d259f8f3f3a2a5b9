//! Codec plugin: pages as they are.
