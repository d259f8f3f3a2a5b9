//! The rules of [`NetworkBuffer`].
//!
//! ```text
//!   guest ──(bench: guest_sends)──► buffer ──(bench: world_receives)──► world
//!         ◄─(bench: guest_receives)─        ◄──(bench: world_sends)───
//! ```
//! That nothing comes is never waited for: a case waits until the buffer itself says that it holds a frame (its
//! [`NetworkStats`]), and what has not come by then is held.
//!
//! [`NetworkStats`]: aventine_api::NetworkStats

mod cases;
mod crash;
mod desk;
mod frame;

use aventine_api::{Host, NetworkBuffer, Side};
use std::sync::Arc;
use std::time::Duration;

use crate::Rule;

#[doc(hidden)]
pub use crash::controller;

/// A network buffer in its surroundings: a guest on the one side, the world on the other. Both exist for as long as the bench.
/// Anything else that is on the wire may show up as well; the cases know their own frames.
pub trait NetworkBench: Sized {
    /// The limit, in bytes, that the bench configures; a few MiB at most.
    const LIMIT: u64;
    /// How long what is due may take on a loaded machine. A broken rule can take as long to be found.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Makes the surroundings and in them a buffer for `side`, guest and world connected to it.
    fn start(side: Side, host: Arc<dyn Host>) -> Self;

    /// Where the surroundings are, for another process of this program: names of devices, a directory.
    fn place(&self) -> String;

    /// Makes a buffer in the surroundings at `place`.
    fn make(place: &str, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer>;

    /// Drops the buffer.
    fn stop(&mut self);

    /// Guest and world connect to the buffer that is there now, which may be another process's.
    fn connect(&mut self);

    /// Makes a buffer for the primary in this process, connected.
    fn restart(&mut self);

    /// The buffer.
    fn buffer(&mut self) -> &mut dyn NetworkBuffer;

    /// Sends an Ethernet frame as the guest. `false`: the buffer makes the guest wait, and has not got it. On `true` the
    /// guest's part is done; a `seal` from now on covers it.
    fn guest_sends(&mut self, frame: &[u8]) -> bool;

    /// The next frame that has reached the world, if one has. Never waits.
    fn world_receives(&mut self) -> Option<Vec<u8>>;

    /// Sends a frame from the world to the guest.
    fn world_sends(&mut self, frame: &[u8]);

    /// The next frame that has reached the guest, if one has. Never waits.
    fn guest_receives(&mut self) -> Option<Vec<u8>>;

    /// Takes away what the buffer sends frames by, or holds them at: its device or its uplink's other end.
    fn vanish(&mut self);
}

macro_rules! rules {
    ($d:tt $($name:ident $side:ident $meaning:literal)*) => {
        /// Every rule, in the order in which an author does best to meet them.
        pub fn rules<B: NetworkBench>() -> Vec<Rule> {
            vec![$(Rule {
                name: stringify!($name),
                meaning: $meaning,
                case: |module| cases::$name::<B>(&mut desk::Desk::start(Side::$side, module)),
            }),*]
        }

        /// Makes a test of each rule of network buffers, on the given [`NetworkBench`](crate::network::NetworkBench). With
        /// `in PLACE` each is run by that function, which may run it elsewhere.
        #[macro_export]
        macro_rules! network {
            ($d bench:ty) => {
                $crate::network!($d bench, in $crate::network::here);
            };
            ($d bench:ty, in $d place:path) => {
                $(
                    #[test]
                    fn $name() {
                        $d place(|| $crate::network::check::<$d bench>(stringify!($name), module_path!()));
                    }
                )*

                /// Not a case: a process that the crash's case starts, and kills.
                #[test]
                #[ignore = "started by a_crash_leaves_nothing_behind"]
                fn controller_that_crashes() {
                    $crate::network::controller::<$d bench>();
                }
            };
        }
    };
}

/// Where a case runs if nothing else is said.
#[doc(hidden)]
pub fn here(case: impl FnOnce()) {
    case();
}

/// Tries the rule of this name; panics where it is broken. What [`network!`](crate::network!) calls.
pub fn check<B: NetworkBench>(name: &str, module: &'static str) {
    crate::suite::check(&rules::<B>(), name, module);
}

rules! { $
    passes_until_engaged Primary
        "until `engage`, frames pass in both directions at once: the initial copy must not mute the guest"
    nothing_leaves_before_release Primary
        "after `engage` no frame leaves before its epoch is released: the standby could not explain it after a takeover"
    released_frames_leave_in_order Primary
        "`release` lets every frame of the epoch out, in the order in which the guest sent them"
    epochs_end_where_they_were_sealed Primary
        "`release(n)` lets out what was sent before `seal(n)` and nothing that was sent after it, epoch after epoch"
    every_protocol_is_held Primary
        "IPv4, IPv6, ARP, VLAN-tagged and any other frames are held alike: one that slips through breaks the promise"
    frames_to_the_guest_pass Primary
        "frames to the guest pass untouched while its own are held"
    release_is_idempotent Primary
        "releasing an epoch again, or an older one, lets nothing more out"
    seal_is_idempotent Primary
        "sealing an epoch again adds nothing to it"
    depth_is_kept Primary
        "as many epochs as `depth` says can be sealed and not released, and are kept apart"
    a_full_buffer_asks_for_an_epoch Primary
        "a buffer that fills asks for the next epoch, before it is full"
    nothing_is_lost_in_silence Primary
        "at its limit a buffer makes the guest wait, or counts each frame that it drops"
    the_owner_loses_nothing Primary
        "`disengage(Owner)` lets everything out, in order and ahead of what comes later, and then frames pass"
    the_other_side_owns_what_was_held Primary
        "`disengage(NotOwner)` drops what is held, nothing leaves any more, and `engage` is refused"
    the_first_reason_stands Primary
        "a second `disengage` in a session changes nothing"
    a_new_session_begins_anew Primary
        "after `disengage(Owner)` a buffer can be engaged again, and counts its epochs from 1"
    a_standby_is_silent Standby
        "on the standby nothing of the guest leaves before `activate`: it would be a second guest of that name"
    activation_opens_both_ways Standby
        "from `activate` on frames pass in both directions, and the guest can be protected in its turn"
    a_loss_is_told Primary
        "a device or uplink that goes away is told, by an error or by `Host::failed`; a buffer that says nothing holds nothing"
    a_crash_leaves_nothing_behind Primary
        "after a crash the next buffer works, and what the crashed one held never leaves: who owns the guest was undecided"
}
