//! The plugin against Debian's etcd, against a wire that loses answers, and against servers that are none.

mod cluster;
mod hostile;
mod sides;
mod trust;
mod verdicts;
