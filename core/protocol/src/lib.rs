//! Frames and state machines of the replication protocol.
