//! The plugin traits of Aventine.
//!
//! A plugin implements one trait of this crate, registers a [`PluginEntry`] and depends on nothing else of the
//! project. The engine reaches every plugin, built in or not, through its entry.
//!
//! Rules that hold for all kinds:
//! - Methods are synchronous. A method's documentation says whether it may block and whether the guest is paused
//!   when it is called. Inside a pause a method neither allocates without bound, nor takes a lock that is held
//!   across I/O, nor waits for the network.
//! - A plugin owns its threads and ends them when it is dropped.
//! - Epoch verbs are called with ascending epochs; each is idempotent for an epoch already given.
//! - An error ends protection in a defined way. A plugin never swallows one: what happens on a plugin's own thread
//!   is reported through [`Host::failed`].
//!
//! ```text
//!            pause        seal(n)        dirty, state        resume       ... ack(n) ...     release(n)
//! guest ────────┤                                              ├──────────────────────────────────────
//! network                    ├─ frames so far belong to n                                        ├─► out
//! disk                       ├─ writes so far belong to n                                        ├─► forget
//! ```
#![forbid(unsafe_code)]

mod arbiter;
mod codec;
mod disk;
mod entry;
mod epoch;
mod error;
mod guest;
mod host;
mod network;
mod pages;
mod policy;
mod schema;
mod transport;
pub mod units;
mod upkeep;

pub use arbiter::{Arbiter, SessionId, Verdict};
pub use codec::{Codec, PageSink};
pub use disk::{
    BlockDevice, Disk, DiskProgress, DiskStats, DiskVerification, MAX_RECORD, RecordHead, RecordRx, RecordTx,
};
pub use entry::{ConfigError, ConfigProblem, Factory, Kind, PluginEntry, parse_config};
pub use epoch::Epoch;
pub use error::{ErrorCode, PluginError};
pub use guest::{Attachments, DiskAttachment, Guest, GuestEvent};
pub use host::{Context, Host, Metric, Side};
pub use inventory;
pub use network::{Disengage, NetAttachment, NetworkBuffer, NetworkStats};
pub use pages::{PAGE_SIZE, PageBitmap, PageRun, Region};
pub use policy::{EpochPolicy, EpochStats, LONGEST_EPOCH, OpenEpoch};
pub use schema::{DurationText, SizeText, schema};
pub use schemars;
pub use transport::{Channel, ChannelRx, ChannelTx, LentMemory, Link, LinkAbort, Listener, Transport};
pub use upkeep::{Premises, Upkeep};
