//! Hosts that change roles: the survivor protects again, and a guest is handed over.

use crate::common::*;
use aventine_demo::lab::Site;
use aventine_demo::network::Host;
use std::thread;
use std::time::Duration;

#[test]
fn the_survivor_protects_again_and_is_survived() {
    let lab = lab("again");
    let mut random = Random::new();
    let (mut pair, load) = with_load(&lab);
    for round in 1..=rounds(8) {
        thread::sleep(Duration::from_millis(random.below(500)));
        pair.fail_over(random.below(2) == 0).unwrap();
        pair.change_roles();
        load.wait_answers(SOME, LIMIT).unwrap();
        lab.restart_standby(&mut pair).unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
        println!("round {round}: {} answers", load.answers());
    }
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn a_guest_is_handed_over_to_and_fro() {
    let lab = lab("handover");
    let (mut pair, load) = with_load(&lab);
    for _ in 0..4 {
        pair.hand_over().unwrap();
        pair.wait_protected().unwrap();
        assert!(pair.primary.printed().contains("the standby has the memory of"), "no full copy");
        load.wait_answers(SOME, LIMIT).unwrap();
    }
    // The new standby is worth something only if it can take over.
    pair.fail_over(true).unwrap();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn a_handover_that_cannot_be_leaves_the_guest_where_it_is() {
    let lab = lab("no-handover");
    let (mut pair, load) = with_load(&lab);
    // Without the arbiter nobody may be asked to take over.
    lab.block_arbiter_of(Host::A, Site::FIRST).unwrap();
    let refused = pair.primary.hand_over().unwrap_err().to_string();
    assert!(refused.contains("the arbiter cannot be asked"), "{refused}");
    assert_eq!(pair.primary.status().unwrap().state, "protected");
    lab.unblock_arbiter_of(Host::A, Site::FIRST).unwrap();
    // A standby that cannot ask falls silent: the primary asks as well, wins, and the guest runs on.
    lab.block_arbiter_of(Host::B, Site::FIRST).unwrap();
    let refused = pair.primary.hand_over().unwrap_err().to_string();
    assert!(refused.contains("the guest runs on here"), "{refused}");
    load.wait_answers(SOME, LIMIT).unwrap();
    lab.unblock_arbiter_of(Host::B, Site::FIRST).unwrap();
    pair.wait_protected().unwrap();
    // A standby has nothing to hand over.
    let refused = pair.standby.hand_over().unwrap_err().to_string();
    assert!(refused.contains("no guest runs here"), "{refused}");
    pair.hand_over().unwrap();
    assert_undisturbed(&finish(&lab, load));
}
