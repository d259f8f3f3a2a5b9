//! The rules of [`Arbiter`].
//!
//! ```text
//!  claimant (primary) ──┐
//!  claimant (standby) ──┼──► the service, at the bench's place ◄── the person, where one decides
//!  … of other processes ┘
//! ```
//! A claim is asked again where it fails or is undecided, as the engine does. Where a person decides
//! ([`Arbiter::waits_for_person`]) the bench plays the person, and the side that the person names takes the place of the one
//! that claimed first.

mod cases;
mod crash;
mod desk;

use crate::suite::suite;
use aventine_api::{Arbiter, SessionId, Side};
use std::time::Duration;

#[doc(hidden)]
pub use crash::claimant;

/// A service that decides, of which nobody has asked anything yet. It exists for as long as the bench.
pub trait ArbiterBench: Sized + 'static {
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Makes the service.
    fn start() -> Self;

    /// Where the service is, for another process of this program.
    fn place(&self) -> String;

    /// Makes the plugin on the host of `side`, for the service at `place`.
    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter>;

    /// Takes the service away: it cannot be asked, or does not answer.
    fn vanish(&mut self);

    /// The service is back, with all that it knew.
    fn reappear(&mut self);

    /// The person decides on both hosts. Called only where the plugin waits for one.
    fn decide(&self, session: SessionId, owner: Side) {
        panic!("the plugin waits for a person, and the bench plays none: {owner:?} owns {session}")
    }
}

suite! { $ arbiter for ArbiterBench, arbiter, by desk, child claimant_that_crashes claimant "started by a_crash_changes_no_verdict";
    the_first_claim_wins
        "the first side that claims a session wins it, whichever it is, and the other side loses: else two guests run, or none"
    a_verdict_stands
        "however often, whenever and in whatever order the two sides ask, they get the answer that they got first"
    a_restart_forgets_nothing
        "a host that was restarted gets the same verdict: it comes back and asks about its last session"
    sessions_are_apart
        "each session is decided by itself: a verdict of the past must not decide again"
    races_have_one_winner
        "of any number of claims at once one side wins: both hosts notice in the same moment that they lost each other"
    the_only_side_never_loses
        "`Lost` is never answered unless the other side has won: a guest would be stopped that nobody goes on with"
    it_says_whether_it_waits_for_a_person
        "an arbiter decides by itself, or says that it waits for a person, and then does: who can wait must not depend on one"
    a_probe_claims_nothing
        "`probe` says whether the arbiter can be asked, and leaves the guest to whoever claims first"
    silence_is_no_verdict
        "a service that cannot be asked is an error, soon, of `claim` and of `probe`: nothing is known, and nobody may go on"
    an_error_costs_nothing
        "a side whose claim failed gets the verdict that is due when it asks again"
    a_crash_changes_no_verdict
        "what a host was told before it died in the middle of a claim stands, and what it was not told is decided once"
}
