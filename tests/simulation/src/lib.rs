//! Deterministic simulation of the replication protocol: the machines of `aventine-protocol`, exactly as they ship, in a
//! world where everything around them is a model and anything may fail between any two steps.
//!
//! ```text
//!  guest ─ frames ─► buffer ─► the world                       ┌────────► image: memory, device, disks
//!    │ writes                    ▲ compared with the truth     │ apply        ▲ compared with the truth
//!    ▼                           │                             │              │
//!  primary's host { Primary } ═══ link: control, pages, disk:N ═══ standby's host { Standby }
//!         └──────── claim ───────────► arbiter ◄─────────── claim ──────────────┘
//! ```
//!
//! # Schedules
//! A seed draws a setup and a list of [`Choice`]s; each is one step: a message arrives, a host carries out *one* of the
//! actions that its machine answered, the arbiter hears a claim, a fault happens. Hosts are busy until the last action is
//! carried out, but crashes and everything on the other side come in between. After the last choice nothing new fails,
//! and what is due happens fairly, eight times over: the bound within which a guest must talk again.
//!
//! # Promises
//! The model records what really happens, unknown to both hosts: the guest at each seal, what the world has heard, who
//! was told what. After each step the [`Promise`]s are compared with it.
//!
//! | promise | checked |
//! |---|---|
//! | output commit | when a frame leaves, when an epoch is acknowledged, at a takeover |
//! | one epoch number | at each commit, each write to the standby's disks, after each application, at a takeover |
//! | all or nothing | after each application, at a takeover: the image is the guest at the last committed seal |
//! | one owner | when a side goes on alone, promotes, restarts or exits; whenever a frame leaves |
//! | an ending has a reason | when the standby is told, when the primary says that its guest is gone, at a takeover |
//! | never frozen, never muted | when a guest is ended, while the arbiter is asked, once all has settled |
//! | nothing silent | whenever a frame leaves, after each application, at a takeover, at a violation of the protocol |
//!
//! # Faults
//! Crash and restart of either host (a primary settles its open session first, a standby begins afresh); death of the
//! link or of one channel with any part of what was on its way; messages swallowed in a stream; any delay, and any order
//! across channels; partition of either direction or both, for a while or for ever; a slow or stuck host; a commit that
//! fails, an application that fails half-way, any other failure of either side; clocks that take the other side for lost
//! at any moment, or late; claims that race, answers that get lost, an arbiter out of reach of either side for a while or
//! for ever, a person as the arbiter; QEMU lost, protection stopped, the guest shut down, handed over; and after a session
//! the next, in either direction.
//!
//! # Not modelled
//! - The handshake: two hosts that want a session have one. Neither depends on the other before that.
//! - Time: detection may come at any moment, so what depends on its length is the engine's to test.
//! - A killed controller whose QEMU survives: like a crashed host it neither speaks nor writes any more.
//! - What `aventine-engine` does around the machines is modelled after it, not run: its own and the end-to-end tests do.
//! - A channel that stays open and swallows everything from some point on.
//!
//! # Replay
//! A failure names the promise, the seed and the step, and shows the shortest schedule found that breaks the same.
//!
//! ```text
//! cargo run -p aventine-simulation -- --seed 42                    one seed, with its short trace if it fails
//! cargo run -p aventine-simulation -- --schedules 1000000          a long run
//! cargo run -p aventine-simulation -- --break HeartbeatGoesOn      a deliberate break, and how it is found
//! AVENTINE_SCHEDULES=1000000 cargo test -p aventine-simulation     a long run as the test
//! ```
//! A seed means the same on every machine for as long as the model and the weights in `schedule.rs` do not change.
//!
//! No shipped crate depends on this one, and the [`Break`]s live here alone: they wrap the machines and the models.
#![forbid(unsafe_code)]

mod arbiter;
mod breaks;
mod guest;
mod network;
mod primary;
mod promise;
mod random;
mod schedule;
mod search;
mod standby;
mod truth;
mod world;

pub use breaks::Break;
pub use network::Lane;
pub use promise::{Promise, Violation};
pub use schedule::{Choice, Setup};
pub use search::{Coverage, Failure, run, search};
