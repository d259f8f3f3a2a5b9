//! What a resource must be like, and what is said where it is not.

use super::*;
use crate::upkeep;
use crate::wire::{describe, kind};
use aventine_disk_common::marker::{Mark, Marker};

fn twin() -> (TempDir, Arc<Twin>) {
    let dir = tempfile::tempdir().unwrap();
    let twin = Twin::new(dir.path(), &[7; 8192]);
    (dir, twin)
}

fn refusal(side: Side, f: impl FnOnce(&mut Inner)) -> String {
    let (dir, twin) = twin();
    twin.change(f);
    match Half::open(dir.path(), &twin, side, BUFFER) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.chain(),
    }
}

#[test]
fn a_primary_has_a_disk_to_trust_and_nobody_else_has_the_guest() {
    let primary = |f: fn(&mut Inner)| refusal(Side::Primary, f);
    let says = |text: String, what: &str| assert!(text.contains(what) && text.contains("r0"), "{text}");
    says(primary(|i| i.roles[1] = Role::Primary), "Primary on the other host");
    says(primary(|i| i.contents[0] = Contents::Inconsistent), "inconsistent");
    says(primary(|i| i.contents[0] = Contents::Outdated), "older");
    says(primary(|i| i.contents[0] = Contents::None), "drbdadm attach r0");
}

#[test]
fn a_standby_is_secondary_and_will_be_connected() {
    let standby = |f: fn(&mut Inner)| refusal(Side::Standby, f);
    let says = |text: String, what: &str| assert!(text.contains(what) && text.contains("r0"), "{text}");
    says(standby(|i| i.roles[1] = Role::Primary), "Primary here");
    says(standby(|i| i.contents[1] = Contents::None), "no disk here");
    says(standby(|i| i.connection = Connection::StandAlone), "drbdadm connect r0");
    let quarrel = |quarrel| {
        refusal(Side::Standby, |i| {
            i.connection = Connection::StandAlone;
            i.quarrel = Some(quarrel);
        })
    };
    says(quarrel(Quarrel::SplitBrain), "--discard-my-data");
    says(quarrel(Quarrel::Unrelated), "invalidate");
}

#[test]
fn replication_takes_a_connection() {
    let (dir, twin) = twin();
    let mut half = Half::open(dir.path(), &twin, Side::Primary, BUFFER).unwrap();
    twin.connect(Connection::StandAlone);
    let error = half.disk.replicate(Box::new(Tx(sync_channel(4).0)), None).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    twin.connect(Connection::Connected);
    twin.change(|inner| inner.contents[1] = Contents::None);
    let (tx, _rx) = sync_channel(4);
    half.disk.replicate(Box::new(Tx(tx)), None).unwrap();
    let Event::Failed(ErrorCode::Unavailable, said) = half.event() else { panic!("no disk there") };
    assert!(said.contains("on the other host"), "{said}");
}

#[test]
fn a_disk_that_does_not_fit_is_refused() {
    for (record, says) in [
        ((kind::DESCRIBE, describe(8192, "r1")), "resource r1"),
        ((kind::DESCRIBE, describe(4096, "r0")), "8192 bytes here"),
        ((kind::DESCRIBE, vec![9; 12]), "version 2313"),
        ((kind::BARRIER, describe(8192, "r0")), "no place"),
    ] {
        let (dir, twin) = twin();
        let mut half = Half::open(dir.path(), &twin, Side::Standby, BUFFER).unwrap();
        let (tx, rx) = sync_channel(1);
        tx.send((RecordHead { epoch: Epoch::COPY, kind: record.0 }, record.1)).unwrap();
        let error = half.disk.receive(Box::new(Rx(rx)), Box::new(Tx(sync_channel(4).0))).unwrap_err();
        assert!(error.chain().contains(says), "{}", error.chain());
    }
    let (dir, twin) = twin();
    let mut half = Half::open(dir.path(), &twin, Side::Standby, BUFFER).unwrap();
    let (_, ended) = sync_channel(1);
    let error = half.disk.receive(Box::new(Rx(ended)), Box::new(Tx(sync_channel(4).0))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PeerLost);
}

#[test]
fn a_primary_may_call_the_resource_otherwise_if_this_side_says_so() {
    let settings = crate::config::parse("resource = 'r0'\npeer_resource = 'r1'").unwrap();
    for (name, taken) in [("r1", true), ("r0", false)] {
        let (dir, twin) = twin();
        let mut half = Half::of(&settings, dir.path(), &twin, Side::Standby).unwrap();
        let (tx, rx) = sync_channel(1);
        let head = RecordHead { epoch: Epoch::COPY, kind: kind::DESCRIBE };
        tx.send((head, describe(8192, name))).unwrap();
        let received = half.disk.receive(Box::new(Rx(rx)), Box::new(Tx(sync_channel(4).0)));
        assert_eq!(received.is_ok(), taken, "{name}: {received:?}");
    }
}

#[test]
fn a_disk_between_two_epochs_is_not_started_from() {
    let (dir, twin) = twin();
    let note = Marker::of(&twin.files[0], dir.path());
    note.write(Mark::Following).unwrap();
    let Err(error) = Half::open(dir.path(), &twin, Side::Primary, BUFFER) else { panic!("started") };
    assert!(error.chain().contains("between two epochs"), "{}", error.chain());
    note.remove().unwrap();
    Half::open(dir.path(), &twin, Side::Primary, BUFFER).unwrap();
}

#[test]
fn upkeep_names_problems_and_takes_a_role_back() {
    let (_dir, twin) = twin();
    let resource = TestResource { twin: Arc::clone(&twin), side: 0 };
    assert!(upkeep::problems(&resource).is_empty());
    assert!(upkeep::demote(&resource).unwrap().is_empty());
    twin.change(|inner| {
        inner.roles[0] = Role::Primary;
        inner.connection = Connection::StandAlone;
        inner.contents[0] = Contents::None;
    });
    assert_eq!(upkeep::problems(&resource).len(), 2);
    assert_eq!(upkeep::demote(&resource).unwrap(), ["the role Primary of resource r0"]);
    assert!(upkeep::demote(&resource).unwrap().is_empty());
}
