//! The demonstration and its checker: a Redis guest that survives its host.
