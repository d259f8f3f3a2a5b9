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

/// A primary whose final epoch, 3, is sealed for a handover; everything before it is acknowledged.
fn handing_over() -> Primary {
    let mut primary = armed_primary();
    assert_eq!(primary_takes(&mut primary, PrimaryEvent::HandOver), []);
    assert!(!primary.is_final());
    assert_eq!(primary.seal().unwrap(), (Epoch(3), true));
    assert!(primary.is_final() && !primary.may_seal(), "the guest stays paused");
    let released = primary_takes(&mut primary, PrimaryEvent::Acknowledged(Epoch(2)));
    assert_eq!(released, [PrimaryAction::Release(Epoch(2))]);
    primary
}

#[test]
fn a_handover_waits_for_the_final_epoch_and_for_the_standby() {
    let mut primary = handing_over();
    let acknowledged = primary_takes(&mut primary, PrimaryEvent::Acknowledged(Epoch(3)));
    assert_eq!(acknowledged, [PrimaryAction::Release(Epoch(3)), PrimaryAction::SendHandOver]);
    let taken = primary_takes(&mut primary, PrimaryEvent::TakenOver);
    assert_eq!(taken, [PrimaryAction::Disengage(Disengage::NotOwner), PrimaryAction::KillGuest]);
    assert_eq!(*primary.state(), PrimaryState::HandedOver);

    let mut standby = armed_standby();
    assert_eq!(standby_takes(&mut standby, StandbyEvent::HandOver), [StandbyAction::Claim]);
    assert!(standby.is_handover());
    let won = standby_takes(&mut standby, StandbyEvent::Verdict(Verdict::Won));
    assert_eq!(won, [StandbyAction::TakeOver(Epoch(2))]);
}

#[test]
fn a_handover_that_fails_gives_the_guest_back_to_the_primary() {
    let mut primary = handing_over();
    let actions = primary_takes(&mut primary, PrimaryEvent::StandbyRenounced);
    assert_eq!(actions, [PrimaryAction::Disengage(Disengage::Owner)]);
    assert_eq!(*primary.state(), PrimaryState::Alone);

    let mut primary = handing_over();
    primary_takes(&mut primary, PrimaryEvent::Acknowledged(Epoch(3)));
    assert_eq!(primary_takes(&mut primary, PrimaryEvent::LinkLost), [PrimaryAction::Claim]);
    let won = primary_takes(&mut primary, PrimaryEvent::Verdict(Verdict::Won));
    assert_eq!(won, [PrimaryAction::Disengage(Disengage::Owner)]);
}

#[test]
fn a_standby_whose_claim_may_have_been_heard_does_not_give_a_guest_back() {
    let mut standby = armed_standby();
    standby_takes(&mut standby, StandbyEvent::HandOver);
    let again = standby_takes(&mut standby, StandbyEvent::Verdict(Verdict::Undecided));
    assert_eq!(again, [StandbyAction::Claim]);
}

#[test]
fn nobody_but_a_protected_guest_is_handed_over() {
    let mut primary = Primary::new(4);
    primary_takes(&mut primary, PrimaryEvent::HandOver);
    assert_eq!(*primary.state(), PrimaryState::Copying);
    assert_eq!(primary_takes(&mut armed_primary(), PrimaryEvent::TakenOver), []);
}
