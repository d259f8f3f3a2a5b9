//! The rules of [`Codec`].
//!
//! ```text
//!  primary's memory ── encode ──► payload ── check, decode ──► standby's memory (regions of 40, 1 and 55 pages)
//!                                    └── damaged ── check ──► refused, or decoded like any other
//! ```
//! The standby's memory begins as noise: a codec knows of a page there what it has decoded into it, and nothing else. What is
//! random comes from fixed seeds.

mod cases;
mod damage;
mod desk;
mod pages;

use crate::suite::suite;
use aventine_api::Codec;

/// Makes a codec.
pub trait CodecBench: Sized + 'static {
    /// Makes a codec, as configured for the bench: one direction of one link, from its beginning.
    fn make() -> Box<dyn Codec>;
}

suite! { $ codec for CodecBench, codec, by desk;
    what_is_encoded_is_decoded
        "batch after batch, the standby's memory becomes what the primary's was: a page that differs is a guest that dies later"
    every_shape_of_batch_arrives
        "single pages, runs side by side, the guest's first and last page, all of it; zeros, noise, and pages that hardly changed"
    nothing_is_assumed_of_memory
        "a page that is sent for the first time replaces whatever the standby has there, also where it is all zeros"
    other_pages_stay
        "a page that a batch does not name is not touched: it may belong to an epoch that is not committed"
    runs_cross_regions
        "a run may go on in another region of memory: the sink refuses what is not all in one"
    payloads_are_bounded
        "a payload is at most the size of its pages and 64 bytes for each run, whatever is in them: buffers are made for that"
    encode_appends
        "`encode` adds to `out` and leaves what is there"
    a_batch_without_pages_changes_nothing
        "a batch may have no pages, at any time"
    pages_are_counted
        "`check` answers exactly how many pages a payload holds: the checkpoint's end tells how many there must be"
    checks_run_ahead
        "a checkpoint's batches are all checked before the first of them is decoded"
    pages_out_of_range_are_refused
        "`check` refuses, as `Corrupt`, a page that the guest does not have: writing it would end the standby"
    damage_never_panics
        "whatever arrives, `check` answers or refuses it as `Corrupt`: one bad frame must not take the standby with it"
    what_passes_can_be_decoded
        "`decode` cannot fail on what `check` has passed: by then the epoch is committed, and nothing else has its pages"
    what_passes_keeps_to_its_count
        "`decode` touches as many pages as `check` has counted, and none that the guest does not have"
    a_sinks_error_is_told
        "an error of the sink is `decode`'s error: memory that was not written must not count as written"
}
