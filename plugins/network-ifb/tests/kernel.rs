//! The plugin on a kernel that has `sch_plug`, as root. Ignored by name elsewhere; the lab runs them.

#[path = "../../network-kernel/testing/bench.rs"]
mod bench;

use aventine_network_ifb as _;
use bench::{Kind, Taps};

struct Ifb;

impl Kind for Ifb {
    const PLUGIN: &'static str = "ifb";
    const PLUGGED: &'static str = "ifb-confor-";
}

aventine_conformance::network!(#[ignore = "needs root and sch_plug: run by the lab"] Taps<Ifb>);
