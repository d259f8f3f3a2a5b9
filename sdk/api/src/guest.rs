use crate::{NetAttachment, PageBitmap, PluginError, Region};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// What the guest's other plugins offer it, so that the guest plugin can connect its devices.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    /// `(id of the [[network]] table, how to reach its buffer)`.
    pub networks: Vec<(String, NetAttachment)>,
    /// `(id of the [[disk]] table, how to reach its export)`.
    pub disks: Vec<(String, DiskAttachment)>,
}

/// How the guest reaches a disk's export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAttachment {
    /// The unix socket of an NBD server; the export's name is the id.
    Nbd(PathBuf),
    /// The unix socket of a vhost-user-blk device, which reads and writes guest memory by itself. The engine, which has the
    /// device, adds the pages that it writes to the answer of [`Guest::dirty`]. [`Guest::pause`] returns only once the device
    /// has stopped.
    VhostUser(PathBuf),
}

/// Something the guest did that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It shut itself down; nothing of it runs any more.
    ShutDown,
    /// It rebooted itself and goes on.
    Rebooted,
    /// Its kernel panicked.
    Panicked,
    /// Its process or domain is gone without a shutdown.
    Lost {
        /// How it ended, for a person.
        how: String,
    },
}

/// Pausing, capturing and resuming a guest; on the standby its memory image and its activation.
///
/// ```text
///  primary:  new ─► start ─► resume ⇄ pause ─► (kill | drop)      standby:  new ─► start ─► activate
///                            paused: start_state, dirty, finish_state                         │
///                                       ▲                                                     │
///                                       └─────────── from here on a primary's guest ──────────┘
/// ```
/// Methods marked *primary* serve a standby's guest, too, once it is activated.
pub trait Guest: Send {
    /// Facts that must be the same on both hosts, as `(name, value)`. Callable before [`Guest::start`]; may run
    /// programs.
    fn signature(&mut self) -> Result<Vec<(String, String)>, PluginError>;

    /// Brings the guest into being. Primary: ready to run but paused; a guest that ran
    /// already is left as it is. Standby: an empty (all-zero) memory image and a
    /// guest that waits for [`Guest::activate`]. Dirty tracking is on, on either side. Called once; may block for
    /// seconds.
    fn start(&mut self, attachments: &Attachments) -> Result<(), PluginError>;

    /// The guest's memory. Called after [`Guest::start`]; the answer never changes afterwards.
    fn regions(&self) -> Vec<Region>;

    /// The file that holds the region at position `region` of [`Guest::regions`], from the file's start on, if there
    /// is one. Its holes are pages of zeros that take no memory; reading them through the mapping would allocate them.
    /// Callable like `regions`. Without an answer every page of the region counts as used.
    fn backing(&self, region: usize) -> Option<BorrowedFd<'_>> {
        let _ = region;
        None
    }

    /// Primary: pauses the guest. On return no virtual CPU runs, no device I/O is in flight and no page changes
    /// until [`Guest::resume`]. Blocks for as long as draining takes. Idempotent.
    fn pause(&mut self) -> Result<(), PluginError>;

    /// Primary, guest paused: begins to save the device state. [`Guest::dirty`] and reads of guest memory may
    /// overlap with it; saving changes no guest page.
    fn start_state(&mut self) -> Result<(), PluginError>;

    /// Primary, guest paused, after [`Guest::start_state`]: waits for the device state and *replaces* `state` with
    /// it. Reuses the capacity of `state`.
    fn finish_state(&mut self, state: &mut Vec<u8>) -> Result<(), PluginError>;

    /// Primary: sets in `dirty` the bit of every page written since the last call (at first: since [`Guest::start`])
    /// and starts tracking them anew; bits already set stay. Atomic for each page: a write that races with the call
    /// shows in this answer or in the next. Guest paused or running.
    ///
    /// What counts is who writes: the guest, its devices and whatever runs it. Pages that the standby's owner puts
    /// into the memory image do not. So the first call after [`Guest::activate`] names exactly the pages in which the
    /// guest may differ from the checkpoint that it was activated with; those that its hypervisor wrote while it took
    /// in the device state are among them.
    ///
    /// After an error the bits already set in `dirty` are valid and must be kept.
    fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), PluginError>;

    /// Primary: sets in `pages` the bit of every page that may hold anything but zeroes, whoever wrote it; bits already
    /// set stay. Changes nothing about [`Guest::dirty`]. Guest paused or running: a page written for the first time
    /// while this call runs may be missing here and is in the next answer of `dirty`. A full copy is therefore these
    /// pages, then what `dirty` says from then on. Not for the pause: may take a millisecond for each gigabyte.
    ///
    /// After an error the bits set so far are valid, and others may be missing.
    fn populated(&mut self, pages: &mut PageBitmap) -> Result<(), PluginError>;

    /// Primary: lets the guest run. Idempotent.
    fn resume(&mut self) -> Result<(), PluginError>;

    /// The guest's process on this host, if it is one. `None` before [`Guest::start`].
    fn process(&self) -> Option<u32>;

    /// What the guest did since the last call, if anything. Never blocks. Called a few times a second at least.
    fn poll(&mut self) -> Result<Option<GuestEvent>, PluginError>;

    /// Standby: the memory image holds a checkpoint, `state` is its device state: the guest runs from there. From
    /// here on this is a primary's guest, running, and nobody but the guest may write its memory. On error the guest
    /// does not run.
    fn activate(&mut self, state: &[u8]) -> Result<(), PluginError>;

    /// Asks the guest's system to shut down (as its power button would). Does not wait.
    fn power_down(&mut self) -> Result<(), PluginError>;

    /// Whether the guest belongs to somebody else and runs on, never left paused, when this value is dropped or its
    /// process ends. Never blocks.
    fn outlives(&self) -> bool;

    /// Ends the guest at once and for good: on return nothing of it runs and it can send nothing more. Idempotent;
    /// also done on drop, unless the guest [outlives](Guest::outlives) it.
    fn kill(&mut self) -> Result<(), PluginError>;
}
