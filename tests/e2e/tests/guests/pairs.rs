//! Two guests on the same two hosts.

use crate::common::*;
use aventine_demo::checker::Load;
use aventine_demo::lab::{Lab, Pair, Site, TAKEOVER};
use aventine_demo::network::Host;

fn start(lab: &Lab, site: Site) -> (Pair, Load) {
    lab.prepare(site).unwrap();
    (lab.launch(site).unwrap(), load(lab, site))
}

#[test]
fn two_guests_fail_over_together() {
    let lab = lab("together");
    let second = Site { guest: 1, primary: Host::A };
    let (mut pair, load) = start(&lab, Site::FIRST);
    let (mut other_pair, other_load) = start(&lab, second);
    load.wait_answers(SOME, LIMIT).unwrap();
    for primary in [&mut pair.primary, &mut other_pair.primary] {
        primary.kill(false).unwrap();
    }
    for standby in [&mut pair.standby, &mut other_pair.standby] {
        standby.wait_for("the takeover", TAKEOVER, took_over).unwrap();
    }
    assert_undisturbed(&finish(&lab, load));
    assert_undisturbed(&finish_at(&lab, second, other_load));
}

#[test]
fn hosts_that_stand_by_for_each_other_lose_one() {
    let lab = lab("crosswise");
    let second = Site { guest: 1, primary: Host::B };
    let (mut pair, load) = start(&lab, Site::FIRST);
    let (mut other_pair, other_load) = start(&lab, second);
    load.wait_answers(SOME, LIMIT).unwrap();
    // Host a goes, with all that runs there.
    pair.primary.kill(false).unwrap();
    other_pair.standby.kill(false).unwrap();
    pair.standby.wait_for("the takeover", TAKEOVER, took_over).unwrap();
    let primary = &mut other_pair.primary;
    primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected").unwrap();
    assert_undisturbed(&finish(&lab, load));
    assert_undisturbed(&finish_at(&lab, second, other_load));
}
