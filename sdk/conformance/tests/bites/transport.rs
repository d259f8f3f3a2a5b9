//! Transports.

mod sockets;

use crate::{Broken, HASTE, expect_bites};
use aventine_api::{Side, Transport};
use aventine_conformance::transport::{TransportBench, rules};
use sockets::Sockets;
use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// What is wrong with a transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    CallsAbsenceALoss,
    TriesOnce,
    TakesNobodyForAnError,
    SaysThatNobodyAnswers,
    TurnsPartsRound,
    CutsLentMemory,
    TakesLentMemoryBack,
    ReadsSettledMemory,
    SettlesADeadLinkNever,
    MixesTwoChannels,
    HoldsOneLockForAll,
    HoldsALockForBothWays,
    RefusesRoutes,
    WaitsForAChannelForEver,
    TakesStrangersIn,
    EndsAllLinks,
    AcceptsTwice,
    LeavesItsAddress,
    AbortsLaterCallsOnly,
    HandsOutWhatHadArrived,
    TakesAnEndForBytes,
    WaitsForADeadStandby,
    CallsADeadPrimaryATimeOut,
}

/// The rule that each fault breaks.
const BROKEN: Broken<Fault, 23> = [
    (Fault::CallsAbsenceALoss, "nobody_there_is_a_time_out"),
    (Fault::TriesOnce, "a_primary_waits_for_its_standby"),
    (Fault::TakesNobodyForAnError, "nobody_came_is_none"),
    (Fault::SaysThatNobodyAnswers, "both_ends_say_that_somebody_answers"),
    (Fault::TurnsPartsRound, "bytes_arrive_whole_and_in_order"),
    (Fault::CutsLentMemory, "lent_memory_carries_what_was_sent"),
    (Fault::TakesLentMemoryBack, "lent_memory_is_the_borrowers_alone"),
    (Fault::ReadsSettledMemory, "settled_memory_is_the_senders"),
    (Fault::SettlesADeadLinkNever, "settle_ends_with_the_link"),
    (Fault::MixesTwoChannels, "channels_are_apart"),
    (Fault::HoldsOneLockForAll, "bulk_never_delays_control"),
    (Fault::HoldsALockForBothWays, "a_stuck_sender_still_hears"),
    (Fault::RefusesRoutes, "a_route_leads_to_the_same_link"),
    (Fault::WaitsForAChannelForEver, "a_channel_that_never_comes_is_a_time_out"),
    (Fault::TakesStrangersIn, "strangers_disturb_nobody"),
    (Fault::EndsAllLinks, "links_are_apart"),
    (Fault::AcceptsTwice, "a_listener_accepts_again"),
    (Fault::LeavesItsAddress, "a_dropped_listener_is_gone"),
    (Fault::AbortsLaterCallsOnly, "abort_wakes_who_waits"),
    (Fault::HandsOutWhatHadArrived, "abort_holds_for_ever"),
    (Fault::TakesAnEndForBytes, "the_other_side_hears_of_an_end"),
    (Fault::WaitsForADeadStandby, "a_killed_standby_is_lost"),
    (Fault::CallsADeadPrimaryATimeOut, "a_killed_primary_is_lost"),
];

thread_local! {
    /// What is wrong with the transports of the benches that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Desk<const HASTY: bool> {
    fault: Fault,
    dir: TempDir,
    strangers: Vec<UnixStream>,
}

impl<const HASTY: bool> TransportBench for Desk<HASTY> {
    const PATIENCE: Duration = if HASTY { HASTE } else { Duration::from_secs(60) };

    fn start() -> Self {
        Desk { fault: FAULT.get(), dir: tempfile::tempdir().unwrap(), strangers: Vec::new() }
    }

    fn place(&self) -> String {
        format!("{:?} {}", self.fault, self.dir.path().display())
    }

    fn make(place: &str, side: Side) -> Box<dyn Transport> {
        let (fault, dir) = place.split_once(' ').unwrap();
        let named = BROKEN.into_iter().find(|(f, _)| format!("{f:?}") == fault);
        let fault = named.map_or(Fault::None, |b| b.0);
        Box::new(Sockets { fault, path: Path::new(dir).join("door"), side })
    }

    fn route(&self) -> Option<String> {
        Some("another way".into())
    }

    fn stranger(&mut self, words: &[u8]) {
        let mut stranger = UnixStream::connect(self.dir.path().join("door")).unwrap();
        // It may have been thrown out already.
        let _ = stranger.write_all(words);
        self.strangers.push(stranger);
    }
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    expect_bites(
        [rules::<Desk<false>>(), rules::<Desk<true>>()],
        module_path!(),
        &BROKEN,
        Fault::None,
        &FAULT,
    );
}

#[test]
#[ignore = "started by the rules a_killed_standby_is_lost and a_killed_primary_is_lost"]
fn peer_that_crashes() {
    aventine_conformance::transport::peer::<Desk<false>>();
}
