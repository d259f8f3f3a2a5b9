//! The contract of an arbiter, with members that die.

use crate::cluster::Cluster;
use crate::sides::{LONG, arbiter, ask, cluster, make, session, until};
use aventine_api::{ErrorCode, Side, Verdict};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

const SIDES: [Side; 2] = [Side::Primary, Side::Standby];

#[test]
fn the_first_claim_wins_for_ever_also_after_a_crash() {
    let mut cluster = cluster(1);
    let config = cluster.config();
    let [mut primary, mut standby] = SIDES.map(|side| arbiter(&config, side));
    assert_eq!(standby.claim(session(1), Side::Standby).unwrap(), Verdict::Won);
    for _ in 0..2 {
        assert_eq!(primary.claim(session(1), Side::Primary).unwrap(), Verdict::Lost);
        assert_eq!(standby.claim(session(1), Side::Standby).unwrap(), Verdict::Won);
    }
    // Another session, another guest and another prefix are other questions.
    assert_eq!(primary.claim(session(2), Side::Primary).unwrap(), Verdict::Won);
    let mut other = make(&config, "db", Path::new("/"), Side::Primary).unwrap();
    assert_eq!(other.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    let mut other = arbiter(&format!("{config}\nprefix = '/other/'"), Side::Primary);
    assert_eq!(other.claim(session(1), Side::Primary).unwrap(), Verdict::Won);

    cluster.members[0].kill();
    for error in [primary.probe().unwrap_err(), primary.claim(session(2), Side::Primary).unwrap_err()] {
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(error.to_string().contains(&cluster.endpoint(0)), "{error}");
    }
    cluster.members[0].start();
    assert_eq!(ask(&mut primary, 1, Side::Primary), Side::Standby);
    assert_eq!(ask(&mut standby, 1, Side::Standby), Side::Standby);
    assert_eq!(ask(&mut standby, 2, Side::Standby), Side::Primary);
}

#[test]
fn a_key_with_another_value_is_an_error_that_names_it() {
    let cluster = cluster(1);
    let key = format!("/aventine/web/{}", session(1));
    let put = format!(
        r#"{{"key":"{}","value":"{}"}}"#,
        STANDARD.encode(&key),
        STANDARD.encode(format!("{} primary", session(2))),
    );
    ureq::post(format!("{}/v3/kv/put", cluster.endpoint(0))).send(put).unwrap();
    for side in SIDES {
        let error = arbiter(&cluster.config(), side).claim(session(1), side).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt);
        assert!(error.chain().contains(&format!("etcdctl put {key}")), "{}", error.chain());
    }
}

/// One claimant for each of the configurations, in turn for either side, all at once. At a third of the `sessions` they
/// wait for each other and for `meanwhile`, which runs on the side of the rest. The owner of each session.
fn race(configs: &[String], sessions: u64, meanwhile: impl FnOnce()) -> Vec<Side> {
    let barrier = Barrier::new(configs.len() + 1);
    let claimant = |number: usize| {
        let (barrier, config, side) = (&barrier, &configs[number], SIDES[number % 2]);
        move || {
            let mut arbiter = arbiter(config, side);
            let claim = |n| {
                if n == sessions / 3 {
                    barrier.wait();
                }
                ask(&mut arbiter, n, side)
            };
            (0..sessions).map(claim).collect::<Vec<Side>>()
        }
    };
    let said: Vec<Vec<Side>> = thread::scope(|scope| {
        let claimants: Vec<_> = (0..configs.len()).map(|number| scope.spawn(claimant(number))).collect();
        barrier.wait();
        meanwhile();
        claimants.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert!(said.iter().all(|owners| *owners == said[0]), "two owners of one session: {said:?}");
    said.into_iter().next().unwrap()
}

/// Four configurations with all members, beginning with different ones.
fn rotated(cluster: &Cluster) -> Vec<String> {
    let size = cluster.members.len();
    let endpoints =
        |first: usize| (0..size).map(|m| cluster.endpoint((first + m) % size)).collect::<Vec<_>>();
    (0..4).map(|first| format!("endpoints = {:?}", endpoints(first))).collect()
}

/// The member that leads, as the members say.
fn leader(cluster: &Cluster) -> usize {
    let leads = |&member: &usize| {
        let url = format!("{}/v3/maintenance/status", cluster.endpoint(member));
        let body = ureq::post(url).send("{}").unwrap().body_mut().read_to_vec().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        status["header"]["member_id"].as_str().unwrap() == status["leader"].as_str().unwrap()
    };
    (0..cluster.members.len()).find(leads).expect("one of the members leads")
}

#[test]
fn one_side_wins_each_session_while_the_leader_dies() {
    const SESSIONS: u64 = 60;
    let mut cluster = cluster(3);
    let (configs, leader) = (rotated(&cluster), leader(&cluster));
    let owners = race(&configs, SESSIONS, || cluster.members[leader].kill());

    // What was decided stays so, whoever asks whom, with this member back and another one gone.
    cluster.members[leader].start();
    let mut back = arbiter(&format!("endpoints = [{:?}]", cluster.endpoint(leader)), Side::Primary);
    until(LONG, || back.probe());
    cluster.members[(leader + 1) % 3].kill();
    for (number, config) in configs.iter().enumerate() {
        let side = SIDES[number % 2];
        let mut arbiter = arbiter(config, side);
        for (n, owner) in (0..).zip(&owners) {
            assert_eq!(ask(&mut arbiter, n, side), *owner, "session {n} has changed its owner");
        }
    }
}

#[test]
fn without_a_majority_nothing_is_decided_and_nothing_waits_for_ever() {
    let mut cluster = cluster(3);
    let config = cluster.config();
    let [mut primary, mut standby] = SIDES.map(|side| arbiter(&config, side));
    assert_eq!(primary.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    cluster.members[0].kill();
    assert_eq!(ask(&mut standby, 1, Side::Standby), Side::Primary);
    cluster.members[1].kill();
    let begun = Instant::now();
    for number in [1, 2] {
        for (arbiter, side) in [(&mut primary, Side::Primary), (&mut standby, Side::Standby)] {
            let error = arbiter.claim(session(number), side).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
        }
    }
    primary.probe().unwrap_err();
    assert!(begun.elapsed() < LONG, "five questions took {:?}", begun.elapsed());
    // Some of those claims may take effect now: one side owns the guest, whichever it is.
    cluster.members[0].start();
    let owner = ask(&mut standby, 2, Side::Standby);
    for _ in 0..2 {
        assert_eq!(ask(&mut primary, 2, Side::Primary), owner);
        assert_eq!(ask(&mut standby, 2, Side::Standby), owner);
        assert_eq!(ask(&mut standby, 1, Side::Standby), Side::Primary);
    }
}
