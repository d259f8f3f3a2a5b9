//! The faults of a guest, and the rules that they break.

use crate::faulty_guest::{Fault, Faulty};
use aventine_api::{Guest, Host, Side};
use aventine_conformance::guest::{GuestBench, Memory, rules};
use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The rule that each fault breaks.
const BROKEN: [(Fault, &str); 26] = [
    (Fault::SignsWithItsSide, "the_signature_agrees"),
    (Fault::MovesItsRegion, "regions_stay"),
    (Fault::BacksWithAnotherFile, "the_backing_is_the_memory"),
    (Fault::TellsNoProcess, "the_process_is_told"),
    (Fault::StartsRunning, "it_starts_paused"),
    (Fault::IgnoresPause, "pause_stops_everything"),
    (Fault::CountsItsPauses, "pause_is_idempotent"),
    (Fault::CountsItsResumes, "resume_is_idempotent"),
    (Fault::TracksFromTheFirstCall, "dirty_begins_with_the_start"),
    (Fault::MissesAPage, "dirty_misses_nothing"),
    (Fault::ForgetsNothing, "dirty_starts_anew"),
    (Fault::ClearsTheBits, "dirty_keeps_set_bits"),
    (Fault::PopulatesTooLittle, "populated_misses_nothing"),
    (Fault::PopulatedClearsDirty, "populated_leaves_dirty_alone"),
    (Fault::SavesIntoMemory, "saving_changes_no_page"),
    (Fault::AppendsItsState, "the_state_replaces_what_was_there"),
    (Fault::TalksAll, "poll_is_silent_while_it_runs"),
    (Fault::WaitsForPowerDown, "power_down_does_not_wait"),
    (Fault::StartsFull, "a_standby_is_empty_and_waits"),
    (Fault::StaysPaused, "a_checkpoint_lives_on"),
    (Fault::ActivatesClean, "a_survivor_can_be_protected"),
    (Fault::ActivatesDirty, "the_owners_pages_are_not_dirty"),
    (Fault::TakesAnyState, "a_damaged_state_does_not_run"),
    (Fault::SaysNothing, "a_lost_guest_is_told"),
    (Fault::RevivesAfterKill, "kill_ends_it_for_good"),
    (Fault::LivesOn, "dropping_ends_it"),
];

/// Seconds that a sound one may take on a loaded machine.
const SOUND: u64 = 60;
/// Seconds that a broken one is waited for: what is due here happens at once.
const BROKEN_ONE: u64 = 1;

thread_local! {
    /// What is wrong with the guests that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Place<const PATIENCE: u64>;

impl<const PATIENCE: u64> GuestBench for Place<PATIENCE> {
    const PATIENCE: Duration = Duration::from_secs(PATIENCE);

    fn new() -> Self {
        Place
    }

    fn make(&self, side: Side, _: Arc<dyn Host>) -> Box<dyn Guest> {
        Box::new(Faulty::new(FAULT.get(), side))
    }

    fn progress(memory: &Memory<'_>) -> Option<u64> {
        let mut count = [0; 8];
        memory.read(0, &mut count);
        Some(u64::from_ne_bytes(count)).filter(|&count| count > 0)
    }

    fn lose(&self, guest: &dyn Guest) {
        let process = guest.process().expect("it is started").to_string();
        let killed = Command::new("kill").args(["-KILL", &process]).status();
        assert!(killed.is_ok_and(|status| status.success()), "process {process} could not be killed");
    }
}

#[test]
fn a_sound_guest_keeps_every_rule() {
    for rule in rules::<Place<SOUND>>() {
        assert_eq!(rule.check(module_path!()), Ok(()));
    }
}

#[test]
fn each_rule_of_guests_catches_its_fault_by_name() {
    let rules = rules::<Place<BROKEN_ONE>>();
    for (fault, name) in BROKEN {
        FAULT.set(fault);
        let rule = rules.iter().find(|r| r.name == name).expect("the rule exists");
        let violation = rule.check(module_path!()).expect_err(&format!("{fault:?} is not caught by {name}"));
        let text = violation.to_string();
        assert!(text.contains(rule.name) && text.contains(rule.meaning), "{text}");
        println!("{fault:?}: {}", violation.seen);
    }
}

#[test]
fn every_rule_of_guests_has_a_fault() {
    let rules = rules::<Place<BROKEN_ONE>>().into_iter().map(|r| r.name).collect::<Vec<_>>();
    assert_eq!(rules, BROKEN.map(|(_, rule)| rule));
}
