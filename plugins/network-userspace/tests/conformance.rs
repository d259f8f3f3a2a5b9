//! The rules of network buffers, with real sockets at both ends.

#[path = "../testing/bench.rs"]
mod bench;

use aventine_conformance::form::Native;
use aventine_network_userspace as _;

type Sockets = bench::Sockets<Native>;

aventine_conformance::network!(Sockets);

/// The same on Debian's kernel.
mod in_the_lab {
    use super::Sockets;

    aventine_conformance::network!(Sockets, in aventine_lab::inside);
}
