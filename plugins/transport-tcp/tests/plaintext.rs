//! Links without encryption.

#[path = "../testing/bench.rs"]
mod bench;
mod common;
#[path = "common/network.rs"]
mod network;
#[path = "common/streams.rs"]
mod streams;
#[path = "common/suite.rs"]
mod suite;

use common::keys;

const TLS: bool = false;

mod conformance {
    use aventine_conformance::form::Native;

    aventine_conformance::transport!(crate::bench::Hosts<Native, crate::bench::Plaintext>);
}

mod conformance_with_three_streams {
    use aventine_conformance::form::Native;

    aventine_conformance::transport!(crate::bench::Hosts<Native, crate::bench::Plaintext, 3>);
}
