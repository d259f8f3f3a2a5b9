//! Network plugin `ifb`: what comes in at the guest's tap goes through an IFB of its own, which has `sch_plug` as its root.
//!
//! ```text
//!                       ┌ not holding ──────────────────────────┐
//!  QEMU ─► tap (`device`) ─ ingress: all protocols ─► IFB ─ plug ┴─► on as if it had just come in at the tap ─► world
//!                                              open ─ seal ─► sealed ─ release
//! ```
//! The guest's output is its tap's *input*, and the kernel queues output only; hence the IFB. Nothing else of the host's
//! network is involved: any number of guests and devices can share a bridge.
//!
//! Invariants, beside those of [`aventine_network_kernel`]:
//! - While nothing is held, frames do not go through the IFB: the redirection comes with `engage` and goes with `disengage`.
//! - When holding ends the plug is opened first, and the redirection removed once it is empty: later frames overtake none.
//!   Then come the qdisc and the IFB.
//! - On a standby the redirection leads into a plug that takes nothing, until this side owns the guest.
//! - The IFB's alias names guest, table and tap. That is how a later start finds it.
#![forbid(unsafe_code)]

mod detour;
mod settings;
mod upkeep;

use aventine_api::{Factory, PluginEntry, Upkeep, inventory, schema};
use settings::Settings;

inventory::submit! {
    PluginEntry {
        name: "ifb",
        version: env!("CARGO_PKG_VERSION"),
        summary: "holds frames in the kernel, by sch_plug at an IFB to which the guest's tap is redirected",
        validate: &|config| Settings::parse(config).map(drop),
        schema: &schema::<settings::Keys>,
        factory: Factory::Network(&|config, context| Ok(Box::new(detour::make(config, context)?))),
        upkeep: Some(Upkeep { probe: &upkeep::probe, reclaim: &upkeep::reclaim }),
    }
}
