use crate::{Disengage, Epoch, ErrorCode, PluginError};
use std::sync::Arc;

/// Largest payload of one record on a disk's or a network's channel, in bytes.
pub const MAX_RECORD: usize = 4 << 20;

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecordHead {
    /// The epoch the record belongs to; [`Epoch::COPY`] for the initial copy.
    pub epoch: Epoch,
    /// The plugin's own kind of record.
    pub kind: u8,
}

/// The sending end of a disk's or a network's channel: ordered, framed and checksummed by the engine.
pub trait RecordTx: Send {
    /// Sends one record whose payload is `parts` one after the other, at most [`MAX_RECORD`] bytes. Blocks while
    /// the other side or the link is slower (that is the back-pressure).
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError>;
}

/// The receiving end of a disk's or a network's channel.
pub trait RecordRx: Send {
    /// Waits for the next record and replaces `payload` with its payload. `PeerLost` when the channel has ended.
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError>;
}

/// The block verbs that the engine exports to the guest. Called from several threads at once; each call blocks until
/// it is done. Offsets and lengths are bytes inside `[0, size)`, multiples of nothing in particular.
///
/// A read sees every write that returned before it began.
pub trait BlockDevice: Send + Sync {
    /// Bytes of the device. Constant; a standby's is known from [`Disk::receive`] on and may be 0 before.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError>;
    /// Writes `data` at `offset`; with `fua` it is on stable storage on return.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError>;
    /// Makes `len` bytes at `offset` zero. Without `may_unmap` the space stays allocated.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError>;
    /// The guest no longer needs these bytes; they read as zero afterwards.
    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError>;
    /// Every write that returned before is on stable storage on return, except between [`Disk::pausing`] and
    /// [`Disk::seal`]: the flush that a hypervisor issues while it pauses the guest returns at once, because
    /// durability belongs to the epoch.
    fn flush(&self) -> Result<(), PluginError>;
}

/// How far the initial copy of a disk is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DiskProgress {
    /// Bytes dealt with so far.
    pub done: u64,
    /// Bytes in all; `done == total` when the copy is complete.
    pub total: u64,
}

/// What a disk tells about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DiskStats {
    /// Bytes the guest has written.
    pub written_bytes: u64,
    /// Payload bytes sent to the standby.
    pub replicated_bytes: u64,
    /// Standby: bytes held for epochs that are not applied yet.
    pub buffered_bytes: u64,
}

/// What a plugin answers that does not implement [`Disk::verify`].
#[derive(Debug, thiserror::Error)]
#[error("The disk's plugin cannot compare the two images")]
struct CannotVerify;

/// How far a comparison of both images is, and what it has found. In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DiskVerification {
    /// Whether it goes on.
    pub running: bool,
    /// To be compared; 0: none was begun.
    pub total: u64,
    /// Compared so far. Less than `total` when it does not go on: the session ended before it was complete.
    pub done: u64,
    /// In pieces of the image that were found to differ.
    pub differing: u64,
    /// Of those, in pieces that were sent again and then found to be the same.
    pub repaired: u64,
}

/// A disk whose writes are replicated by epoch.
///
/// ```text
/// primary: new ─► replicate(tx, back) ─► [copy … copied] ─► { writes, pausing, seal(n), release(n) }* ─► disengage
///            ▲                                                                                        │ Owner
///            └───────────────────────────── a new session, epochs from 1 ─────────────────────────────┘
/// standby: new ─► receive(rx, back) ─► { staged(n) reported, commit(n), apply(n) }* ─► activate
/// ```
/// On the standby nothing of epoch n reaches the image before `commit(n)`, and all of it does before `activate`.
pub trait Disk: Send {
    /// How many sealed epochs it can hold besides the open one; at least 1. Constant.
    fn depth(&self) -> u32;

    /// `host:port` of the standby where this disk's channel has an address of its own; `None`: the shared transport.
    fn route(&self) -> Option<String>;

    /// The device to export. Standby: readable after [`Disk::receive`], writable only after [`Disk::activate`].
    fn block(&self) -> Arc<dyn BlockDevice>;

    /// Primary: from now on every write also goes to `tx`, tagged with the open epoch ([`Epoch::COPY`] until
    /// [`Disk::seal`] was called once), and the image as it is now is copied live, on the plugin's own thread. A
    /// failure later on is reported by [`crate::Host::failed`]; the guest's writes go on locally. Once more after
    /// `disengage(Owner)`: a new session.
    ///
    /// `back` is the same channel's way back, on which the standby can say what its image holds already, so that only the
    /// difference is copied. Never waits for it: whoever reads it does so on a thread of its own. `None`: nobody will
    /// answer (a recording), and everything is copied.
    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError>;

    /// Primary: how far the initial copy is.
    fn progress(&self) -> DiskProgress;

    /// Primary: the guest is about to be paused; see [`BlockDevice::flush`]. Until [`Disk::seal`] no request waits for the
    /// channel: the hypervisor waits for all of them.
    fn pausing(&self);

    /// Primary, guest paused and drained: all writes so far and not sealed yet belong to `epoch`; puts the barrier
    /// into the channel. Does not wait for the standby. Idempotent.
    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Primary: the standby has committed `epoch`. Idempotent. Does not wait for the device: where what the guest flushed up to
    /// `epoch` is on stable storage of neither side, the answer is [`ErrorCode::TimedOut`], and the engine asks again, every
    /// millisecond or so, before any output of the epoch leaves. Meanwhile no epoch is sealed. A disk that does not come to its
    /// end with that answers another error, which ends protection.
    ///
    /// [`ErrorCode::TimedOut`]: crate::ErrorCode::TimedOut
    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Primary: ends replication. `Owner`: the guest's reads and writes go on, locally. `NotOwner`: they fail from
    /// now on. Idempotent.
    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError>;

    /// Primary, while epochs are sealed, guest running: begins to compare the standby's image with this one by hash, on the
    /// plugin's own thread, while the guest goes on writing; with `repair`, what differs is sent again and compared once
    /// more. Does not wait. Refused while one goes on. `Unavailable`, with what to do instead, by plugins that cannot.
    fn verify(&mut self, repair: bool) -> Result<(), PluginError> {
        let _ = repair;
        Err(PluginError::new(ErrorCode::Unavailable, CannotVerify))
    }

    /// Primary: the newest comparison, also after its session. Never blocks.
    fn verification(&self) -> DiskVerification {
        DiskVerification::default()
    }

    /// Standby: takes the image from `rx`, on the plugin's own thread. Blocks until the primary has described the
    /// disk; refuses one that does not fit. Reports the barrier of each epoch by [`crate::Host::staged`], failures
    /// by [`crate::Host::failed`]: a record that has no place there, and an epoch of which a record is missing or
    /// changed, is `Corrupt`, is never reported as staged and does not reach the image. What is sent by `back` reaches the
    /// primary's [`Disk::replicate`], if that listens.
    fn receive(&mut self, rx: Box<dyn RecordRx>, back: Box<dyn RecordTx>) -> Result<(), PluginError>;

    /// Standby: `epoch`, whose barrier was reported, is committed; one that was not reported is refused. No I/O.
    /// Idempotent.
    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Standby: brings every committed write up to `epoch` into the image, in order. Idempotent, also after an
    /// interruption. An error means that the image is half applied: the disk then refuses [`Disk::activate`].
    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Standby: this side now owns the guest, at `epoch`: writes of later epochs are discarded, `epoch` itself is
    /// applied if it is not yet, and the device becomes writable. Refused for an `epoch` that is not committed.
    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError>;

    /// Counters. Never blocks.
    fn stats(&self) -> DiskStats;
}
