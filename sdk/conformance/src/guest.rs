//! The rules of [`Guest`].
//!
//! ```text
//!  guest's memory ◄── read and, on a standby, filled by the suite
//!        │                as the engine would: pages, state, activation
//!        └── bench: how far the guest has come
//! ```
//! That a guest does not run is seen by its memory: it is read again and again, and stays what it is. A running guest
//! changes it all the time.

mod cases;
mod lab;
mod memory;

use crate::suite::suite;
use aventine_api::{Attachments, Guest, Host, Side};
use std::sync::Arc;
use std::time::Duration;

pub use memory::Memory;

/// A place for guests that all do the same, and count it in their memory.
pub trait GuestBench: Sized {
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Makes a place. It goes when the bench does.
    fn new() -> Self;

    /// Makes a guest, not started. Any number of them, for either side.
    fn make(&self, side: Side, host: Arc<dyn Host>) -> Box<dyn Guest>;

    /// What it is started with.
    fn attachments(&self) -> Attachments {
        Attachments::default()
    }

    /// How far the guest with this memory has come: a number that grows all the time while it runs, and stays where its
    /// checkpoint was when it is taken over. `None`: it has not begun, because its firmware runs.
    fn progress(memory: &Memory<'_>) -> Option<u64>;

    /// Ends a started guest from outside, as a crash of its process would.
    fn lose(&self, guest: &dyn Guest);
}

suite! { $ guest for GuestBench, guest, by module;
    the_signature_agrees
        "`signature` is callable before `start` and names the same facts on both sides: else no standby fits its primary"
    regions_stay
        "`regions` number the pages from 0 without gaps, never change after `start`, and are as long on both sides"
    the_backing_is_the_memory
        "the file that `backing` answers holds the region, from its start on: the engine reads pages from it"
    the_process_is_told
        "`process` is `None` before `start`, and then a process that exists, always the same"
    it_starts_paused
        "a primary's guest is paused after `start`: what it did before the copy would be lost"
    pause_stops_everything
        "while the guest is paused no page changes, until `resume` lets it go on: a checkpoint would mix two moments"
    pause_is_idempotent
        "pausing again changes nothing: one `resume` lets the guest run"
    resume_is_idempotent
        "resuming again changes nothing: one `pause` stops the guest"
    dirty_begins_with_the_start
        "the first `dirty` names every page written since `start`"
    dirty_misses_nothing
        "`dirty` names every page written since the last call, called while the guest runs or is paused: a page that is \
         missed is wrong on the standby for ever"
    dirty_starts_anew
        "`dirty` names no page again that was not written again: each epoch would carry all of the memory"
    dirty_keeps_set_bits
        "bits already set stay when `dirty` is asked: they are pages of an epoch that was lost"
    populated_misses_nothing
        "`populated` names every page that holds anything but zeroes, and bits already set stay: a full copy is made of them"
    populated_leaves_dirty_alone
        "`populated` changes nothing about `dirty`: the pages written before it would be lost"
    saving_changes_no_page
        "saving the device state changes no guest page: pages are copied meanwhile"
    the_state_replaces_what_was_there
        "`finish_state` replaces what the vector held and reuses its capacity: it is called in the pause"
    poll_is_silent_while_it_runs
        "`poll` says nothing of a guest that only runs: anything it says ends or changes protection"
    power_down_does_not_wait
        "`power_down` returns though the guest does not heed it, and leaves it running"
    a_standby_is_empty_and_waits
        "a standby's memory is all zero after `start`, and its guest does not run before `activate`"
    a_checkpoint_lives_on
        "memory and state of a checkpoint, activated, go on from that checkpoint"
    a_survivor_can_be_protected
        "after `activate` the guest is a primary's: the first `dirty` names all that differs from the checkpoint, and the \
         next standby comes to life from what it tells"
    the_owners_pages_are_not_dirty
        "pages that the standby's owner put into the image are not dirty after `activate`: the survivor's first epoch would \
         carry all of the memory"
    a_damaged_state_does_not_run
        "a state that is damaged is an error, and the guest does not run: nobody knows what it would do"
    a_lost_guest_is_told
        "a guest whose process is gone is reported by `poll` as `Lost`, once, and cannot be paused or resumed any more"
    kill_ends_it_for_good
        "`kill`, however often, ends the guest at once: nothing brings it back, and it is not reported as lost"
    dropping_ends_it
        "a guest that is dropped ends, unless it outlives its value: there may be another one of that name by then"
}
