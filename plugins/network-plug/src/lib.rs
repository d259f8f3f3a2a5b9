//! Network plugin `plug`: `sch_plug` as the root qdisc of the device by which the guest's frames leave.
//!
//! ```text
//!  QEMU ── tap (`device`) ── bridge ── `egress` ─ root: plug ─► world
//!                                       ▲ open ─ seal ─► sealed ─ release
//! ```
//! `egress` must be the guest's alone: whatever leaves by it is held, too. It is a port of the tap's bridge, and where that
//! has no third one it need not be named. Where the guest shares its way out with others, use `ifb`.
//!
//! Invariants, beside those of [`aventine_network_kernel`]:
//! - The plug is there before the guest runs and until it is gone, so that no frame is lost by putting it there; it lets
//!   everything through while nothing is held.
//! - On a standby it lets nothing through, until this side owns the guest.
//! - Another root qdisc, that the kernel has not attached by itself, is never replaced.
#![forbid(unsafe_code)]

mod egress;
mod settings;
mod upkeep;

use aventine_api::{Factory, PluginEntry, Upkeep, inventory, schema};
use settings::Settings;

inventory::submit! {
    PluginEntry {
        name: "plug",
        version: env!("CARGO_PKG_VERSION"),
        summary: "holds frames in the kernel, by sch_plug at the device by which the guest's frames leave",
        validate: &|config| Settings::parse(config).map(drop),
        schema: &schema::<settings::Keys>,
        factory: Factory::Network(&|config, context| Ok(Box::new(egress::make(config, context)?))),
        upkeep: Some(Upkeep { probe: &upkeep::probe, reclaim: &upkeep::reclaim }),
    }
}
