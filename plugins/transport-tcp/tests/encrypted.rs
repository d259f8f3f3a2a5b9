//! Links with encryption.

#[path = "../testing/bench.rs"]
mod bench;
mod common;
#[path = "common/suite.rs"]
mod suite;

use common::keys;

const TLS: bool = true;

mod conformance {
    use aventine_conformance::form::Native;

    aventine_conformance::transport!(crate::bench::Hosts<Native, crate::bench::Encrypted>);
}
