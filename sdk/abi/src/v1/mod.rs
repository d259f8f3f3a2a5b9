//! Interface 1: what a plugin and its host call on each other. Frozen once released.
//!
//! Each file holds the facade of one native trait and its two adapters: `Exported` turns the native value into the facade's
//! object, on the side that owns the value; an `Imported…` turns the object back into the native trait on the other.
//! A method of a facade is the method of the native trait with its types spelled in a fixed layout:
//!
//! | native | here |
//! |---|---|
//! | `Result<T, PluginError>`, and any `T` | [`Answer<T>`]: a panic is an answer, too |
//! | [`Epoch`](aventine_api::Epoch), page numbers | `u64` |
//! | `Duration` | `u64` nanoseconds |
//! | enums without data | their number, `u8` |
//! | paths | their bytes |
//! | `&mut Vec` that is filled | a slice lent by the side that filled it, valid until the next call |
//!
//! Guest memory never crosses: its address does.

// What `abi_stable` writes for a trait has no documentation of its own, and is not in this crate's style.
#![allow(missing_docs, non_camel_case_types, non_local_definitions, unreachable_pub, unused_qualifications)]

mod answer;
mod arbiter;
mod codec;
mod disk;
mod edge;
mod entry;
mod guest;
mod host;
mod log;
mod network;
mod policy;
mod records;
mod transport;

pub use answer::{Answer, ErrorV1};
pub use arbiter::{ArbiterV1, ArbiterV1_TO, SessionV1};
pub use codec::{CodecV1, CodecV1_TO, PageRunV1, PageSinkV1, PageSinkV1_TO};
pub use disk::{BlockV1, BlockV1_TO, DiskProgressV1, DiskStatsV1, DiskV1, DiskV1_TO, DiskVerificationV1};
pub use entry::{
    ConfigErrorV1, DescriptionV1, EntryV1, EntryV1_TO, InstanceV1, RootV1, RootV1_Ref, adapted, import, open,
};
pub use guest::{
    AttachedDiskV1, AttachedNetworkV1, AttachmentsV1, DirtyV1, FactV1, GuestEventV1, GuestV1, GuestV1_TO,
    RegionV1,
};
pub use host::{ContextV1, HostV1, HostV1_TO};
pub use log::{FieldV1, LogV1, LogV1_TO, RecordV1};
pub use network::{NetAttachmentV1, NetworkStatsV1, NetworkV1, NetworkV1_TO};
pub use policy::{EpochStatsV1, PolicyV1, PolicyV1_TO};
pub use records::{ReceivedV1, RecordRxV1, RecordRxV1_TO, RecordTxV1, RecordTxV1_TO};
pub use transport::{
    AbortV1, AbortV1_TO, ChannelRxV1, ChannelRxV1_TO, ChannelTxV1, ChannelTxV1_TO, ChannelV1, LinkV1,
    LinkV1_TO, ListenerV1, ListenerV1_TO, MemoryV1, MemoryV1_TO, TransportV1, TransportV1_TO,
};
