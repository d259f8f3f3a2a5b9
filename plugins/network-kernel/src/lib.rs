//! What the network plugins `plug` and `ifb` share: holding a guest's frames in the kernel, by `sch_plug`.
//!
//! ```text
//!  Buffer (epoch verbs, modes) ──► Path (how frames get to the plug) ──► Plug (one sch_plug) ─┐
//!     └── watch (thread: backlog, drops)                        devices, filters ─────────────┴─► netlink ─► kernel
//! ```
//! | module | contents |
//! |---|---|
//! | `wire` | bytes of netlink messages, both ways; no I/O |
//! | `netlink` | one request and the kernel's answer |
//! | `device`, `filter`, `plug` | what is asked of the kernel |
//! | `buffer`, `watch` | [`aventine_api::NetworkBuffer`] over any [`Path`] |
//! | `claim` | one process for each device |
//! | `settings`, `probe` | the plugins' keys; what this machine lacks |
//! | `stage` | an empty namespace with taps and bridges, to probe, measure and test in |
//!
//! Invariants:
//! - No frame is let out but by `RELEASE_ONE` for an epoch that was released, or after this side was told that it owns the
//!   guest. Whatever goes wrong, held frames are dropped, never sent.
//! - The kernel's `sch_plug` can tell one sealed epoch from the open one, no more; a second seal is refused here.
//! - Only what carries Aventine's mark is ever changed or removed: a root qdisc `plug` with one of our two handles, an
//!   IFB whose alias names this guest, a filter that redirects to such an IFB.
//!
//! # When the controller dies
//!
//! The kernel keeps a plug when its controller is gone. The rule is that of the `userspace` buffer: who owns the guest is
//! undecided then, so nothing that was held may leave. The guest's QEMU opens the tap itself and dies with the controller
//! (the kernel kills it), so no guest is left that could be muted; the standby runs it after the detection time, the
//! arbiter's answer and the activation. What stays behind holds nothing but frames nobody may see, and the next start
//! of either role, or `aventine reclaim`, drops it.
#![deny(unsafe_code)]

mod buffer;
mod claim;
mod device;
mod filter;
mod netlink;
mod plug;
mod probe;
mod settings;
mod stage;
mod watch;
mod wire;

pub use buffer::{Buffer, Path, PathError};
pub use claim::{Claim, ClaimError};
pub use device::{Counters, Device};
pub use filter::{Diversion, Redirects, redirects};
pub use netlink::{Netlink, NetlinkError};
pub use plug::{Plug, QdiscInfo, QueueStats};
pub use probe::{Need, lacking, probe};
pub use settings::{LIMIT_RANGE, device_name, limit};
pub use stage::{enter_namespace, keep_tap, make_bridge, open_tap};
