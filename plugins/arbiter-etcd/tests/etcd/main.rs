//! The plugin against Debian's etcd, against a wire that loses answers, and against servers that are none.

#[path = "../../testing/bench.rs"]
mod bench;
#[path = "../../testing/cluster.rs"]
mod cluster;
mod hostile;
mod sides;
mod trust;
mod verdicts;

mod conformance {
    use aventine_conformance::form::Native;

    aventine_conformance::arbiter!(crate::bench::Etcd<Native>);
}
