//! The rules of a [`Transport`] on whose links nobody answers: it records what is sent.
//!
//! ```text
//!  primary ── connect ──► link ── open ──► channel ── send ──► the record ──► bench
//! ```

mod cases;
mod desk;

use crate::suite::suite;
use aventine_api::Transport;
use std::time::Duration;

/// A place for one record.
pub trait RecorderBench: Sized + 'static {
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Makes a place where nothing is recorded yet.
    fn start() -> Self;

    /// Makes the plugin, of the primary.
    fn make(&self) -> Box<dyn Transport>;

    /// What is recorded there: the channels, in the order of their opening, and the bytes of each.
    fn recorded(&self) -> Vec<(String, Vec<u8>)>;
}

suite! { $ recorder for RecorderBench, recorder, by desk;
    it_connects_to_nobody
        "`connect` succeeds at once, and the link says that nobody answers: the engine must not take the guest for protected"
    what_is_sent_is_recorded
        "each channel's bytes are recorded, whole and in order, from nothing to some MiB: a record is what a codec is tried on"
    nothing_ever_comes
        "`recv` waits until the link is ended: what comes would be taken for a standby's word"
    abort_wakes_who_waits
        "`abort`, from any thread, ends a `recv` that waits with `PeerLost`"
    abort_holds_for_ever
        "after `abort` every call is `PeerLost`, however often it was called, and nothing is recorded any more"
}
