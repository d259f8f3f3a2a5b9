//! The faults of a disk, and the rules that they break.

use crate::faulty_disk::{Fault, Faulty};
use aventine_api::{Disk, Host, PluginError, Side};
use aventine_conformance::disk::{DiskBench, hosts, rules};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The rule that each fault breaks.
const BROKEN: [(Fault, &str); 37] = [
    (Fault::LosesOddBytes, "reads_see_writes"),
    (Fault::TrimsNothing, "zeroes_and_trims_read_as_zero"),
    (Fault::ForgetsItsSize, "the_size_stays"),
    (Fault::CopiesWhatWasThere, "the_copy_is_live"),
    (Fault::SkipsZeroes, "the_copy_overwrites"),
    (Fault::ClaimsTheCopy, "progress_leads_to_the_first_epoch"),
    (Fault::FitsAnything, "an_image_that_does_not_fit_is_refused"),
    (Fault::BeginsWithoutAPrimary, "a_session_that_never_began_is_an_error"),
    (Fault::AppliesBackwards, "overlapping_writes_arrive_in_order"),
    (Fault::DropsWhatCollides, "threads_may_write_at_once"),
    (Fault::SendsAnyLength, "records_fit_the_channel"),
    (Fault::TagsNothing, "records_carry_their_epoch"),
    (Fault::ClosesEarly, "epochs_end_where_they_were_sealed"),
    (Fault::WritesAtOnce, "nothing_reaches_the_image_before_commit"),
    (Fault::ReportsEarly, "staged_means_complete"),
    (Fault::CommitsAnything, "what_did_not_arrive_is_not_committed"),
    (Fault::MergesEpochs, "depth_is_kept"),
    (Fault::SealsTwice, "seal_is_idempotent"),
    (Fault::RefusesToReleaseAgain, "release_is_idempotent"),
    (Fault::CommitsBackwards, "commit_is_idempotent"),
    (Fault::AppliesAgain, "apply_is_idempotent"),
    (Fault::SealsInStep, "seal_does_not_wait"),
    (Fault::FlushesInStep, "nothing_waits_in_the_pause"),
    (Fault::ClosedOnAStandby, "a_standby_is_readable"),
    (Fault::WritableOnAStandby, "a_standby_is_not_writable"),
    (Fault::ActivatesAll, "activation_ends_at_its_epoch"),
    (Fault::EndsWithReplication, "the_owner_goes_on_alone"),
    (Fault::OpenToTheOtherSide, "the_other_sides_guest_is_shut_out"),
    (Fault::CopiesOnce, "a_new_session_copies_all"),
    (Fault::SaysNothing, "a_lost_channel_is_told"),
    (Fault::WaitsForALostChannel, "a_lost_channel_holds_nobody"),
    (Fault::TakesAnything, "foreign_records_are_refused"),
    (Fault::ChecksNothing, "harmed_records_are_refused"),
    (Fault::WaitsWhenDropped, "a_dropped_disk_lets_go"),
    (Fault::CountsNothing, "stats_tell_what_is_held"),
    (Fault::ReplaysAtStart, "a_crash_exposes_nothing"),
    (Fault::ZeroesTooLittle, "a_model_agrees"),
];

/// Seconds that a sound one may take on a loaded machine.
const SOUND: u64 = 60;
/// Seconds that a broken one is waited for: what is due here happens at once.
const BROKEN_ONE: u64 = 1;

thread_local! {
    /// What is wrong with the disks that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Place<const PATIENCE: u64> {
    path: PathBuf,
    _dir: Option<TempDir>,
}

impl<const PATIENCE: u64> Place<PATIENCE> {
    fn file(&self, side: Side) -> PathBuf {
        self.path.join(side.name())
    }
}

impl<const PATIENCE: u64> DiskBench for Place<PATIENCE> {
    const PATIENCE: Duration = Duration::from_secs(PATIENCE);

    fn new(primary: &[u8], standby: Option<&[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { path: dir.path().to_owned(), _dir: Some(dir) };
        fs::write(place.file(Side::Primary), primary).unwrap();
        if let Some(standby) = standby {
            fs::write(place.file(Side::Standby), standby).unwrap();
        }
        // The processes that crash have the same fault.
        if FAULT.get() == Fault::ReplaysAtStart {
            fs::write(place.path.join("replays"), "").unwrap();
        }
        place
    }

    fn place(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    fn at(place: &str) -> Self {
        if Path::new(place).join("replays").exists() {
            FAULT.set(Fault::ReplaysAtStart);
        }
        Place { path: place.into(), _dir: None }
    }

    fn make(&self, side: Side, host: Arc<dyn Host>) -> Result<Box<dyn Disk>, PluginError> {
        Ok(Box::new(Faulty::new(FAULT.get(), &self.file(side), side, host)))
    }

    fn image(&self, side: Side) -> Vec<u8> {
        fs::read(self.file(side)).unwrap()
    }
}

#[test]
fn a_sound_disk_keeps_every_rule() {
    for rule in rules::<Place<SOUND>>() {
        assert_eq!(rule.check(module_path!()), Ok(()));
    }
}

#[test]
fn each_rule_of_disks_catches_its_fault_by_name() {
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
fn every_rule_of_disks_has_a_fault() {
    let rules = rules::<Place<BROKEN_ONE>>().into_iter().map(|r| r.name).collect::<Vec<_>>();
    assert_eq!(rules, BROKEN.map(|(_, rule)| rule));
}

#[test]
#[ignore = "started by the rule a_crash_exposes_nothing"]
fn hosts_that_crash() {
    hosts::<Place<SOUND>>();
}
