//! The rules of [`Transport`], and of the links and channels that come out of it.
//!
//! ```text
//!  primary ── connect ──► link ── open ──► channel ══════ channel ◄── open ── link ◄── accept ── listen ── standby
//!                                             the bench's place: loopback
//! ```
//! Both sides open a channel at the same time, as the engine does; a case never knows who is first. That a sender is stuck is
//! known by its getting no further, and nothing depends on that being so.
//!
//! A transport on whose links nobody answers has rules of its own: [`recorder`](mod@crate::recorder).

/// Every case.
mod cases {
    pub(super) use super::{endings::*, lending::*, passing::*};
}
mod crash;
pub(crate) mod desk;
mod endings;
mod lending;
mod passing;
pub(crate) mod wire;

use crate::suite::suite;
use aventine_api::{Side, Transport};
use std::time::Duration;

#[doc(hidden)]
pub use crash::peer;

/// Two hosts that can reach each other. Their address exists for as long as the bench.
pub trait TransportBench: Sized + 'static {
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Makes an address of its own, at which nobody listens.
    fn start() -> Self;

    /// Where the hosts are, for another process of this program.
    fn place(&self) -> String;

    /// Makes the plugin on the host of `side`.
    fn make(place: &str, side: Side) -> Box<dyn Transport>;

    /// An address of the standby as a disk's route names it, if the transport can lead a channel there.
    fn route(&self) -> Option<String> {
        None
    }

    /// Somebody who is no primary comes to the standby's address, says something or nothing, and stays there with the bench.
    fn stranger(&mut self, words: &[u8]);
}

suite! { $ transport for TransportBench, transport, by desk, child peer_that_crashes peer "started by a_killed_standby_is_lost and a_killed_primary_is_lost";
    nobody_there_is_a_time_out
        "`connect` ends at its limit with `TimedOut` where no standby listens: the operator can give up"
    a_primary_waits_for_its_standby
        "`connect` tries until a standby listens: the hosts start in any order"
    nobody_came_is_none
        "`accept` answers `None` at its limit, and who comes later is accepted"
    both_ends_say_that_somebody_answers
        "`answers` is true and `peer` says something on both ends: a person reads it, and the engine waits for acknowledgements"
    bytes_arrive_whole_and_in_order
        "what is sent arrives, in order, both ways at once, from nothing to some MiB and however it is cut into parts"
    lent_memory_carries_what_was_sent
        "what is sent from memory that the transport lends, or taken in such, arrives like everything else, whatever is mixed with it"
    lent_memory_is_the_borrowers_alone
        "nothing writes to lent memory while somebody has it, and it outlives its link: what came late would change a checkpoint \
         that was checked"
    settled_memory_is_the_senders
        "once `settle` says so, nobody reads what was sent from lent memory: the next batch is captured there; who drops it need \
         not even ask"
    settle_ends_with_the_link
        "`settle` on a link that has ended is over at once, with `PeerLost` if it has to fail: a hung wire must not keep a guest's \
         staging memory"
    channels_are_apart
        "each channel has its own bytes: a checkpoint's page must not come out where a heartbeat is due"
    bulk_never_delays_control
        "a channel that is stuck delays no other one: a late heartbeat is a takeover for nothing"
    a_stuck_sender_still_hears
        "a channel whose sending end is stuck receives all the same"
    a_route_leads_to_the_same_link
        "a channel with an address of its own is one of the link's"
    a_channel_that_never_comes_is_a_time_out
        "`open` ends at its limit with `TimedOut`, and the link's other channels go on"
    strangers_disturb_nobody
        "who is no primary, or half of one, neither becomes a link nor keeps a primary out"
    links_are_apart
        "an old link that ends, or hangs, does not touch the new one beside it"
    a_listener_accepts_again
        "a listener outlives its links: the primary comes back"
    a_dropped_listener_is_gone
        "once listener and links are dropped their address is free: the standby starts again"
    abort_wakes_who_waits
        "`abort`, from any thread, ends every `send`, `recv` and `open` that waits with `PeerLost`: a hung wire must not hang a guest"
    abort_holds_for_ever
        "after `abort` every call is `PeerLost`, however often it was called, and what had arrived is not handed out: an \
         acknowledgement would count that came too late"
    the_other_side_hears_of_an_end
        "when one side aborts or drops its end, the other's `recv` is `PeerLost`, and so is its `send` before long"
    a_killed_standby_is_lost
        "when the standby's process dies its primary's calls are `PeerLost`: it goes on alone"
    a_killed_primary_is_lost
        "when the primary's process dies its standby's calls are `PeerLost`: it takes over, and can listen again"
}
