//! Transport plugin: TCP.
