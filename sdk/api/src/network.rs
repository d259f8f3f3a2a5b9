use crate::{Epoch, PluginError, RecordRx, RecordTx};
use std::path::PathBuf;

/// How the guest reaches a network buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetAttachment {
    /// A unix stream socket, listening, that speaks QEMU's `stream` framing (a 32-bit big-endian length, then the
    /// Ethernet frame).
    Stream(PathBuf),
    /// A unix stream socket on which the guest's hypervisor listens; the buffer connects to it, again and again until
    /// it succeeds, and speaks the same framing. For a VM that runs already.
    Served(PathBuf),
    /// A tap device by name; the guest opens it.
    Tap(String),
}

/// Why holding ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Disengage {
    /// This side owns the guest: everything held goes out, in order, then frames pass at once.
    Owner = 1,
    /// The other side owns the guest: everything held is dropped and nothing passes any more.
    NotOwner = 2,
}

/// What a network buffer tells about itself. Bytes include the Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetworkStats {
    /// Frames held now.
    pub held_frames: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Frames from the guest that went out, ever.
    pub sent_frames: u64,
    /// Frames to the guest, ever.
    pub received_frames: u64,
    /// Frames lost by the buffer or its uplink, ever. Never silent: an increase is logged and shown in status.
    pub dropped_frames: u64,
    /// Frames of which the standby was given no copy, ever: see [`NetworkBuffer::replicate`]. Nothing is lost by it.
    pub uncopied_frames: u64,
}

/// Holds what the guest sends until the epoch behind it is committed. Frames to the guest pass untouched.
///
/// A buffer may also give the standby copies of recent frames: of those to the guest, because a takeover resumes a guest
/// that has not seen the last ones, and of those from it, because committed ones may not have left when the primary was
/// lost. Repeating them at the takeover spares both ends their retransmission timers. It is best effort: nothing waits
/// for it, and nothing depends on it. A frame that arrives twice is what networks do.
///
/// ```text
///   passing ── engage ──► holding ── disengage(Owner) ──► passing
///      ▲          ▲          │                                 │
///      │          └──────────┼──────── engage: a new session ──┘
///   activate (standby;       └──────── disengage(NotOwner) ─► silent, for good
///   silent before it)
/// ```
pub trait NetworkBuffer: Send {
    /// How many sealed epochs it can hold besides the open one; at least 1. Constant.
    fn depth(&self) -> u32;

    /// Where the guest connects. Valid from creation on.
    fn attachment(&self) -> NetAttachment;

    /// Primary: from now on copies of recent frames also go to `tx`, on the plugin's own thread. Called in each session
    /// before its first checkpoint, guest running or not. Slowness and loss of the channel only cost copies, which are
    /// counted. Without it (the default) there are none.
    fn replicate(&mut self, tx: Box<dyn RecordTx>) -> Result<(), PluginError> {
        drop(tx);
        Ok(())
    }

    /// Primary, guest running: it is about to be paused, and what happens from now on need not be in the checkpoint.
    /// Bounded, no network I/O.
    fn pausing(&mut self) {}

    /// Primary: from now on frames are held. Called once the first checkpoint of a session is committed, guest paused
    /// or running; the session's epochs are counted from 1. Idempotent. `Refused` after `disengage(NotOwner)`.
    fn engage(&mut self) -> Result<(), PluginError>;

    /// Primary, guest paused: all frames held and not sealed yet belong to `epoch`. Bounded, no network I/O beyond
    /// emptying what the guest already sent. Idempotent.
    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Primary: `epoch` is committed; every frame of it and of earlier epochs goes out, in order. Frames of later
    /// epochs stay. Does not block on the uplink. Idempotent.
    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Ends holding; see [`Disengage`]. On return `Owner` has handed everything to the uplink, `NotOwner` has
    /// made sure that nothing can leave. Idempotent; the first reason in a session stands.
    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError>;

    /// Standby: takes the primary's copies from `rx`, on the plugin's own thread. A channel that ends or is damaged ends
    /// only the copies. Without it (the default) there are none.
    fn receive(&mut self, rx: Box<dyn RecordRx>) -> Result<(), PluginError> {
        drop(rx);
        Ok(())
    }

    /// Standby: the primary is `suspected` to be lost, or no longer; nothing is decided. While it is, what the world sends to
    /// the guest may be drawn to this host and kept, for `activate` to give to the guest; the primary, if it lives, must
    /// lose no more than a few frames by that. Never blocks. Without it (the default) frames that were sent between the
    /// loss and the takeover are lost, and come again when their senders repeat them.
    fn suspect(&mut self, suspected: bool) {
        let _ = suspected;
    }

    /// Standby: this side now owns the guest, at `epoch`; frames pass in both directions, nothing is held. Copies of
    /// frames that the guest has not seen at `epoch` go to it, and those that it had sent by then may go out again,
    /// before any others; copies of what it sent later never do. Called before the guest runs.
    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Counters. Never blocks.
    fn stats(&self) -> NetworkStats;
}
