//! The rules of [`Disk`] and [`BlockDevice`].
//!
//! ```text
//!   guest ──► primary's disk ══ channel of the suite ══► standby's disk
//!                  │            (held, cut, harmed)           │
//!            image (bench)                              image (bench)
//! ```
//! That nothing reaches an image is never waited for: a case waits until the standby has dealt with all that it was
//! given and asks for more, and looks at the image then.
//!
//! [`BlockDevice`]: aventine_api::BlockDevice

mod cases;
mod crash;
mod desk;
mod host;
mod model;
mod wire;

use crate::suite::suite;
use aventine_api::{Disk, Host, PluginError, Side};
use std::sync::Arc;
use std::time::Duration;

#[doc(hidden)]
pub use crash::hosts;

/// What a disk does in another way than others, by design. The rules then hold it to what is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A standby's device is closed until `activate`: reading it is `Unavailable`.
    ClosedStandby,
    /// What is released comes into the standby's image by means of the plugin's own: soon after `release`, and not by `apply`.
    /// What an owner goes on to write comes there as well.
    AppliedBelow,
    /// The primary's image has nothing that is not released, until that side owns the guest alone.
    CommittedOnly,
    /// By means of the plugin's own both images have one size: there is none that does not fit.
    OneSize,
}

/// A place with two images, and the plugin's disks on them.
pub trait DiskBench: Sized {
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// What the plugin does in another way than others.
    const DIFFERENCES: &'static [Difference] = &[];
    /// Images have a multiple of so many bytes.
    const GRAIN: usize = 1;
    /// Random runs against the model.
    const RUNS: u64 = 24;
    /// The disks are in processes on other machines, which [`DiskBench::crash`] kills. Otherwise those that are to crash are made
    /// in a process of this program.
    const FAR: bool = false;

    /// Makes a place: the primary's image holds `primary`; the standby's holds `standby`, or is not there. It goes when
    /// the bench does.
    fn new(primary: &[u8], standby: Option<&[u8]>) -> Self;

    /// Where the place is, for another process of this program.
    fn place(&self) -> String;

    /// The place that another process has made; it stays.
    fn at(place: &str) -> Self;

    /// Makes a disk on the image of `side`.
    fn make(&self, side: Side, host: Arc<dyn Host>) -> Result<Box<dyn Disk>, PluginError>;

    /// What the image of `side` holds, read past the plugin, which may have it open.
    fn image(&self, side: Side) -> Vec<u8>;

    /// Where disks are `FAR`: kills the processes that have them; the place stays.
    fn crash(&self) {}
}

fn differs<B: DiskBench>(how: Difference) -> bool {
    B::DIFFERENCES.contains(&how)
}

suite! { $ disk for DiskBench, disk, by module, child hosts_that_crash hosts "started by a_crash_exposes_nothing";
    reads_see_writes
        "a read sees every write that returned before it, of any size and at any offset: else the guest's data is damaged"
    zeroes_and_trims_read_as_zero
        "after `write_zeroes`, with `may_unmap` or without, and after `trim` the bytes read as zero, and no others do"
    the_size_stays
        "`size` is constant: what is exported to the guest ends there, on the standby from `receive` on"
    the_copy_is_live
        "the initial copy completes while the guest writes, and the standby's image then equals the primary's"
    the_copy_overwrites
        "the copy overwrites whatever the standby's image held, where the primary's is empty, too"
    progress_leads_to_the_first_epoch
        "`progress` never passes `total`, which is the size; where they meet, an epoch can be sealed"
    an_image_that_does_not_fit_is_refused
        "`receive` refuses an image of another size and leaves it as it is: it may be somebody's disk"
    a_session_that_never_began_is_an_error
        "`receive` answers an error when the channel ends before the disk is described: the engine waits for it"
    overlapping_writes_arrive_in_order
        "the standby has overlapping writes, zeroes and trims in the order of the primary's image"
    threads_may_write_at_once
        "the device is called from several threads at once, and both sides end with the same bytes"
    records_fit_the_channel
        "a record's payload is at most `MAX_RECORD` bytes, however long a write is: the channel takes no more"
    records_carry_their_epoch
        "what is sent before the first `seal` carries `Epoch::COPY`, and after `seal(n)` the epoch n+1"
    epochs_end_where_they_were_sealed
        "epoch n has every write before `seal(n)` and none after it: a takeover would mix two moments of the disk"
    nothing_reaches_the_image_before_commit
        "on the standby nothing of an epoch reaches the image before `commit`, which itself does no I/O: the primary may \
         still own the guest"
    staged_means_complete
        "an epoch is reported as staged once, and only when all of it has arrived: its output leaves because of that"
    what_did_not_arrive_is_not_committed
        "an epoch that was not reported as staged can be neither committed nor activated: it would be half a disk"
    depth_is_kept
        "as many epochs as `depth` says can be sealed and not committed, and are kept apart"
    seal_is_idempotent
        "sealing an epoch again ends no other one"
    release_is_idempotent
        "releasing an epoch again, or an older one, changes nothing"
    commit_is_idempotent
        "committing an epoch again, or an older one, takes nothing back and commits nothing more"
    apply_is_idempotent
        "applying an epoch again, or an older one, changes nothing in the image"
    seal_does_not_wait
        "`seal` returns though the standby takes nothing: the guest is paused meanwhile"
    nothing_waits_in_the_pause
        "from `pausing` to `seal` writes and flushes return though the standby takes nothing: the hypervisor waits for them"
    a_standby_is_readable
        "a standby's device can be read after `receive`, and shows its image"
    a_standby_is_not_writable
        "a standby's device refuses every change before `activate`: the image would differ from every epoch"
    activation_ends_at_its_epoch
        "`activate(n)` brings all of n into the image, discards what is later, then and from then on, and makes the device \
         writable"
    the_owner_goes_on_alone
        "after `disengage(Owner)`, however often, reads, writes and flushes go on"
    the_other_sides_guest_is_shut_out
        "after `disengage(NotOwner)`, however often, reads and writes fail: two guests would write as one"
    a_new_session_copies_all
        "after `disengage(Owner)` a new session begins with a full copy, and counts its epochs from 1"
    a_lost_channel_is_told
        "a channel that is lost is told by `Host::failed` on both sides: the guest is unprotected from then on"
    a_lost_channel_holds_nobody
        "when the channel is lost, the guest's writes go on, those too that waited for it"
    foreign_records_are_refused
        "a record that has no place there is `Corrupt`, its epoch is never staged, and the image stays"
    harmed_records_are_refused
        "an epoch of which a record is missing or harmed is `Corrupt` and never staged: it is reported as complete and checked"
    a_dropped_disk_lets_go
        "a disk that is dropped ends its threads and lets its image go, though the channel is stuck"
    stats_tell_what_is_held
        "`stats` count what the guest wrote, what was sent, and what the standby holds and has not applied"
    a_crash_exposes_nothing
        "after a crash of both hosts at any step the standby's image has nothing of an epoch that was not committed, the disk \
         on it is none to write to, and a new session makes it whole"
    a_model_agrees
        "both sides do what a plain model does, whatever happens in whatever order"
}
