//! Single paths through the machines, by hand. Every order of events is the simulation's.

use aventine_api::{Disengage, Epoch, Verdict};
use aventine_protocol::*;

/// A primary that has given an armed seal out: epochs 1 and 2 are sealed, 1 is acknowledged.
fn armed_primary() -> Primary {
    let mut primary = Primary::new(4);
    let mut actions = Vec::new();
    primary.step(PrimaryEvent::Copied, &mut actions).unwrap();
    primary.seal().unwrap();
    primary.step(PrimaryEvent::Acknowledged(Epoch(1)), &mut actions).unwrap();
    assert_eq!(primary.seal().unwrap(), (Epoch(2), true));
    primary
}

/// A standby with one disk that has committed epochs 1 and 2, the second one armed.
fn armed_standby() -> Standby {
    let mut standby = Standby::new(1);
    for n in 1..=2 {
        standby_takes(&mut standby, StandbyEvent::PagesStaged { epoch: Epoch(n), armed: n == 2 });
        standby_takes(&mut standby, StandbyEvent::DiskStaged { disk: 0, epoch: Epoch(n) });
    }
    assert!(standby.is_armed());
    standby
}

fn primary_takes(primary: &mut Primary, event: PrimaryEvent) -> Vec<PrimaryAction> {
    let mut actions = Vec::new();
    primary.step(event, &mut actions).unwrap();
    actions
}

fn standby_takes(standby: &mut Standby, event: StandbyEvent) -> Vec<StandbyAction> {
    let mut actions = Vec::new();
    standby.step(event, &mut actions).unwrap();
    actions
}

#[test]
fn a_lost_primary_is_taken_over_at_its_last_committed_epoch() {
    let mut standby = armed_standby();
    // The memory of epoch 3 arrives, its disk writes do not.
    let partial = StandbyEvent::PagesStaged { epoch: Epoch(3), armed: true };
    assert_eq!(standby_takes(&mut standby, partial), []);
    assert_eq!(standby_takes(&mut standby, StandbyEvent::PeerLost), [StandbyAction::Claim]);
    let won = standby_takes(&mut standby, StandbyEvent::Verdict(Verdict::Won));
    assert_eq!(won, [StandbyAction::TakeOver(Epoch(2))]);
}

#[test]
fn an_acknowledgement_out_of_order_ends_protection() {
    let mut primary = Primary::new(4);
    let mut actions = primary_takes(&mut primary, PrimaryEvent::Copied);
    primary.seal().unwrap();
    let violation = primary.step(PrimaryEvent::Acknowledged(Epoch(2)), &mut actions).unwrap_err();
    assert!(violation.to_string().contains("Epoch 2 was acknowledged"), "{violation}");
    assert_eq!(*primary.state(), PrimaryState::Alone);
    assert_eq!(actions, [PrimaryAction::Disengage(Disengage::Owner)]);
}

#[test]
fn parts_out_of_order_disarm_the_standby() {
    let mut standby = Standby::new(1);
    let mut actions = Vec::new();
    let event = StandbyEvent::DiskStaged { disk: 0, epoch: Epoch(2) };
    let violation = standby.step(event, &mut actions).unwrap_err();
    assert_eq!(violation.to_string(), "Disk 0 is complete for epoch 2, but epoch 1 comes next");
    assert!(matches!(&actions[..], [StandbyAction::SendFailed(_)]));
    assert_eq!(*standby.state(), StandbyState::Ended(None));
}

#[test]
fn an_unarmed_standby_never_promotes() {
    let mut standby = Standby::new(0);
    standby_takes(&mut standby, StandbyEvent::PagesStaged { epoch: Epoch(1), armed: false });
    let actions = standby_takes(&mut standby, StandbyEvent::PeerLost);
    assert_eq!(*standby.state(), StandbyState::Ended(None));
    assert_eq!(actions, []);
}

#[test]
fn a_standby_that_disarms_itself_spares_the_primary_the_arbiter() {
    for word in [PrimaryEvent::StandbyRenounced, PrimaryEvent::EndAcknowledged] {
        let mut primary = armed_primary();
        assert_eq!(primary_takes(&mut primary, PrimaryEvent::LinkLost), [PrimaryAction::Claim]);
        let undecided = PrimaryEvent::Verdict(Verdict::Undecided);
        assert_eq!(primary_takes(&mut primary, undecided), [PrimaryAction::Claim]);
        let actions = primary_takes(&mut primary, word);
        assert_eq!(actions, [PrimaryAction::Disengage(Disengage::Owner)]);
        assert_eq!(*primary.state(), PrimaryState::Alone);
    }
}

#[test]
fn a_guest_that_has_shut_down_is_not_resurrected_by_a_claim_on_its_way() {
    let mut standby = armed_standby();
    standby_takes(&mut standby, StandbyEvent::PeerLost);
    let told = standby_takes(&mut standby, StandbyEvent::End(EndReason::GuestShutDown));
    assert_eq!(told, [StandbyAction::SendEndAck]);
    assert_eq!(standby_takes(&mut standby, StandbyEvent::Verdict(Verdict::Won)), []);
    assert_eq!(*standby.state(), StandbyState::Ended(Some(EndReason::GuestShutDown)));
}

#[test]
fn a_stop_that_comes_after_the_claim_leaves_the_guest_an_owner() {
    let mut standby = armed_standby();
    standby_takes(&mut standby, StandbyEvent::PeerLost);
    assert_eq!(standby_takes(&mut standby, StandbyEvent::End(EndReason::Stopped)), []);
    let won = standby_takes(&mut standby, StandbyEvent::Verdict(Verdict::Won));
    assert_eq!(won, [StandbyAction::TakeOver(Epoch(2))]);
}

#[test]
fn a_lost_guest_is_handed_over_at_once() {
    let actions = primary_takes(&mut armed_primary(), PrimaryEvent::GuestLost);
    assert_eq!(actions, [PrimaryAction::Disengage(Disengage::NotOwner), PrimaryAction::SendYield]);
    assert_eq!(standby_takes(&mut armed_standby(), StandbyEvent::Yield), [StandbyAction::Claim]);
}
