//! Addresses of both families, this host's own end, and a bandwidth.

use super::common::{LONG, PORT, Pair, fail, open, own_ip, own_port, recv_vec, security, transport};
use aventine_api::{ErrorCode, Side};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

fn pair(listen: &str, peer: &str, primary: &str) -> Pair {
    let text = |more: &str| format!("listen = '{listen}'\npeer = '{peer}'\n{more}\n{}", security());
    let mut listener = transport(&text(""), Side::Standby).listen(&[]).unwrap();
    let primary = transport(&text(primary), Side::Primary).connect(LONG).unwrap();
    let standby = listener.accept(LONG).unwrap().unwrap();
    Pair { listener, primary, standby }
}

fn says(pair: &mut Pair) {
    let ((mut tx, _a), (_b, mut rx)) = open(pair, "control", None);
    tx.send(&[b"here"]).unwrap();
    assert_eq!(recv_vec(&mut rx, 4), b"here");
}

#[test]
fn ipv6_and_a_listener_for_both_families() {
    let port = own_port(1);
    for (peer, from) in
        [("[::1]", "[::1]:"), ("127.0.0.1", "127.0.0.1:"), ("[::ffff:127.0.0.1]", "127.0.0.1:")]
    {
        let mut pair = pair(&format!("[::]:{port}"), &format!("{peer}:{port}"), "priority = 3");
        assert!(pair.standby.peer().starts_with(from), "{}", pair.standby.peer());
        says(&mut pair);
    }
}

#[test]
fn connections_come_from_the_source() {
    let (standby, source) = (own_ip(), own_ip());
    let mut p =
        pair(&format!("{standby}:{PORT}"), &format!("{standby}:{PORT}"), &format!("source = '{source}'"));
    assert!(p.standby.peer().starts_with(&format!("{source}:")), "{}", p.standby.peer());
    says(&mut p);
}

#[test]
fn a_source_that_is_none_is_named_at_once_and_one_of_the_other_family_is_passed_over() {
    let connect = |source: &str, limit| {
        let peer = format!("peer = '{}:{PORT}'\nsource = '{source}'\n{}", own_ip(), security());
        fail(transport(&peer, Side::Primary).connect(limit))
    };
    let e = connect("192.0.2.6", LONG);
    assert_eq!(e.code(), ErrorCode::Unavailable);
    assert!(
        e.chain().contains("192.0.2.6, the `source` in [transport], is no address of this host"),
        "{}",
        e.chain()
    );
    let e = connect("::1", Duration::from_millis(100));
    assert_eq!(e.code(), ErrorCode::TimedOut);
    assert!(e.chain().contains("one is IPv4, the other IPv6"), "{}", e.chain());
}

#[test]
fn bulk_keeps_to_its_bandwidth() {
    let at = format!("{}:{PORT}", own_ip());
    let mut p = pair(&at, &at, "bandwidth = '8MiB/s'\nstreams = 2");
    let ((mut tx, _a), (_b, mut rx)) = open(&mut p, "pages", None);
    let bulk = vec![7; 4 << 20];
    let began = Instant::now();
    thread::scope(|scope| {
        let receiving = scope.spawn(|| recv_vec(&mut rx, bulk.len()));
        tx.send(&[&bulk]).unwrap();
        assert!(receiving.join().unwrap() == bulk);
    });
    // Half a second, but for the credit and the last quantum.
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
}

#[test]
fn control_passes_bulk_that_waits_for_bandwidth_and_abort_wakes_it() {
    let at = format!("{}:{PORT}", own_ip());
    let mut p = pair(&at, &at, "bandwidth = '1MiB/s'");
    let ((mut control, _a), (_b, mut heard)) = open(&mut p, "control", None);
    let ((mut tx, _c), (_d, mut rx)) = open(&mut p, "pages", None);
    let aborter = p.primary.aborter();
    thread::scope(|scope| {
        // Ten minutes' worth.
        let sending = scope.spawn(move || fail(tx.send(&[&vec![0; 600 << 20]])));
        recv_vec(&mut rx, 1);
        // Far more than the bandwidth has for them.
        for beat in 0..5000u32 {
            control.send(&[&beat.to_le_bytes(), &[0; 4096]]).unwrap();
            assert_eq!(recv_vec(&mut heard, 4100)[..4], beat.to_le_bytes());
        }
        assert!(!sending.is_finished());
        aborter.abort();
        assert_eq!(sending.join().unwrap().code(), ErrorCode::PeerLost);
    });
}

#[test]
fn a_host_that_does_not_answer_does_not_keep_the_other_away() {
    let (mute, standby) = (own_ip(), own_ip());
    // Its backlog takes connections, and nobody answers them.
    let _mute = TcpListener::bind((mute, PORT)).unwrap();
    let listen = format!("listen = '{standby}:{PORT}'\npeer = 'nobody:1'\n{}", security());
    let mut listener = transport(&listen, Side::Standby).listen(&[]).unwrap();
    let dial = format!("peer = ['{mute}:{PORT}', '{standby}:{PORT}']\n{}", security());
    let link = transport(&dial, Side::Primary).connect(LONG).unwrap();
    assert!(link.peer().contains(&standby.to_string()), "{}", link.peer());
    assert!(listener.accept(LONG).unwrap().is_some());
}
