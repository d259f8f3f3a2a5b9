//! The plugin on a kernel that has `sch_plug`, as root. Ignored by name elsewhere; the lab runs them.

#[path = "../../network-kernel/testing/bench.rs"]
mod bench;

use aventine_network_plug as _;
use bench::{Kind, Taps};

struct Plug;

impl Kind for Plug {
    const PLUGIN: &'static str = "plug";
    const PLUGGED: &'static str = "world0";
}

aventine_conformance::network!(#[ignore = "needs root and sch_plug: run by the lab"] Taps<Plug>);
