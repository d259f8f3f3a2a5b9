//! Each rule is broken on purpose, in a plugin that keeps all others, and caught by name.

mod network;
