//! What holds with and without encryption, beside the rules of every transport: both ends over the loopback device, made
//! through the plugin's entry as the engine makes them.

use crate::common::{
    Ends, LONG, PORT, Pair, config, connect, fail, listen, open, own_ip, own_port, pair, recv_vec, security,
    transport,
};
use aventine_api::{ChannelTx, ErrorCode, PluginError, Side};
use std::error::Error as _;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

const ROUTE_PORT: u16 = 7401;

#[test]
fn bytes_flow_both_ways_on_each_channel() {
    let mut p = pair(own_ip(), &[]);
    let mut ends: Vec<_> = ["control", "pages", "disk:disk0"].iter().map(|n| open(&mut p, n, None)).collect();
    for (i, ((tx, _), (_, rx))) in ends.iter_mut().enumerate() {
        tx.send(&[&[i as u8], b"", b" to the standby"]).unwrap();
        assert_eq!(recv_vec(rx, 16), [&[i as u8], b" to the standby".as_slice()].concat());
    }
    for (i, ((_, rx), (tx, _))) in ends.iter_mut().enumerate() {
        tx.send(&[&[i as u8]]).unwrap();
        assert_eq!(recv_vec(rx, 1), [i as u8]);
    }
    assert!(p.primary.peer().contains(":7400"), "{}", p.primary.peer());
}

#[test]
fn bytes_sent_before_the_standby_opens_a_channel_wait_for_it() {
    let mut p = pair(own_ip(), &[]);
    let (mut tx, _rx) = p.primary.open("control", None, LONG).unwrap();
    let (mut pages, _) = p.primary.open("pages", None, LONG).unwrap();
    tx.send(&[b"early"]).unwrap();
    pages.send(&[b"too"]).unwrap();
    let (_tx, mut rx) = p.standby.open("control", None, LONG).unwrap();
    assert_eq!(recv_vec(&mut rx, 5), b"early");
    let (_tx, mut rx) = p.standby.open("pages", None, LONG).unwrap();
    assert_eq!(recv_vec(&mut rx, 3), b"too");
}

#[test]
fn a_big_transfer_in_odd_pieces_arrives_intact() {
    let mut p = pair(own_ip(), &[]);
    let ((mut tx, _a), (_b, mut rx)) = open(&mut p, "pages", None);
    // A pattern that shows any loss, repetition or exchange.
    let all: Vec<u8> = (0..8u32 << 20).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let expected = all.clone();
    let sender = thread::spawn(move || {
        let mut rest = all.as_slice();
        for round in 1.. {
            // More slices than one system call takes, of sizes around a page.
            let mut parts = Vec::new();
            for i in 0..1500 {
                let (part, after) = rest.split_at(rest.len().min(4090 + (i * round) % 13));
                parts.push(part);
                rest = after;
            }
            tx.send(&parts).unwrap();
            if rest.is_empty() {
                break;
            }
        }
    });
    let mut at = 0;
    while at < expected.len() {
        let n = (expected.len() - at).min(70_001);
        assert!(recv_vec(&mut rx, n) == expected[at..at + n], "bytes {at}.. differ");
        at += n;
    }
    sender.join().unwrap();
    assert_eq!(fail(rx.recv(&mut [0])).code(), ErrorCode::PeerLost, "nothing comes after the end");
}

/// Both hands of both sides at work at once, on one channel.
#[test]
fn both_directions_at_full_speed_keep_every_byte() {
    let mut p = pair(own_ip(), &[]);
    let (near, far) = open(&mut p, "pages", None);
    let halves = [(near.0, far.1), (far.0, near.1)];
    let threads: Vec<_> = halves
        .into_iter()
        .zip([3u32, 5])
        .map(|((mut tx, mut rx), seed)| {
            let word = move |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes();
            let all: Vec<u8> = (0..8u32 << 20).flat_map(word).collect();
            let expected = all.clone();
            let sender = thread::spawn(move || {
                for (i, block) in all.chunks(1 << 20).enumerate() {
                    let (head, body) = block.split_at(40 + i);
                    let pages: Vec<_> = std::iter::once(head).chain(body.chunks(4096)).collect();
                    tx.send(&pages).unwrap();
                }
                tx
            });
            let receiver = thread::spawn(move || {
                for (i, block) in expected.chunks(333_333).enumerate() {
                    assert!(recv_vec(&mut rx, block.len()) == block, "block {i} differs");
                }
                rx
            });
            (sender, receiver)
        })
        .collect();
    for (sender, receiver) in threads {
        drop((sender.join().unwrap(), receiver.join().unwrap()));
    }
}

#[test]
fn abort_wakes_open_on_both_sides() {
    let mut p = pair(own_ip(), &[]);
    // The listener's backlog takes the connection, but no door answers it.
    let mute = TcpListener::bind((own_ip(), PORT)).unwrap();
    let route = mute.local_addr().unwrap().to_string();
    let (from_primary, from_standby) = (p.primary.aborter(), p.standby.aborter());
    let begun = Instant::now();
    let primary = thread::spawn(move || fail(p.primary.open("disk:a", Some(&route), LONG)));
    let standby = thread::spawn(move || fail(p.standby.open("disk:a", None, LONG)));
    let _dialled = mute.accept().unwrap();
    from_primary.abort();
    from_standby.abort();
    for e in [primary.join().unwrap(), standby.join().unwrap()] {
        assert_eq!(e.code(), ErrorCode::PeerLost, "{}", e.chain());
    }
    assert!(begun.elapsed() < LONG);
}

#[test]
fn several_links_live_side_by_side() {
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    let mut pairs: Vec<(Ends, Ends)> = Vec::new();
    for _ in 0..4 {
        let mut primary = connect(ip);
        let mut standby = listener.accept(LONG).unwrap().unwrap();
        // Out of turn on purpose: `pages` of each link waits for its own link.
        let near = primary.open("pages", None, LONG).unwrap();
        pairs.push((near, standby.open("pages", None, LONG).unwrap()));
    }
    for (i, ((tx, _), _)) in pairs.iter_mut().enumerate() {
        tx.send(&[&[i as u8]]).unwrap();
    }
    for (i, (_, (_, rx))) in pairs.iter_mut().enumerate().rev() {
        assert_eq!(recv_vec(rx, 1), [i as u8]);
    }
    let (first, rest) = pairs.split_at_mut(1);
    drop(std::mem::replace(&mut first[0].0.0, Box::new(Closed)));
    assert_eq!(fail(first[0].1.1.recv(&mut [0])).code(), ErrorCode::PeerLost);
    rest[0].0.0.send(&[b"!"]).unwrap();
    assert_eq!(recv_vec(&mut rest[0].1.1, 1), b"!");
}

struct Closed;

impl ChannelTx for Closed {
    fn send(&mut self, _: &[&[u8]]) -> Result<(), PluginError> {
        Ok(())
    }
}

#[test]
fn a_route_is_dialled_at_its_own_port() {
    let ip = own_ip();
    let route = format!("{ip}:{ROUTE_PORT}");
    let mut p = pair(ip, &[route.clone(), format!("elsewhere:{PORT}")]);
    let ((mut tx, _a), (_b, mut rx)) = open(&mut p, "disk:a", Some(&route));
    tx.send(&[b"routed"]).unwrap();
    assert_eq!(recv_vec(&mut rx, 6), b"routed");
    // A route that nobody listens on shows that the route is what is dialled.
    let e = fail(p.primary.open("disk:b", Some(&format!("{ip}:7402")), LONG));
    assert_eq!(e.code(), ErrorCode::PeerLost);
    assert!(e.chain().contains(&format!("{ip}:7402")), "{}", e.chain());
    let e = fail(p.primary.open("disk:c", Some("nowhere"), LONG));
    assert_eq!(e.code(), ErrorCode::Config);
    drop(p.listener);
}

#[test]
fn a_name_is_resolved_and_its_addresses_are_tried() {
    // `localhost` may be ::1 first; only 127.0.0.1 listens.
    let port = own_port(0);
    let text = format!("listen = '127.0.0.1:{port}'\npeer = 'localhost:{port}'\n{}", security());
    let mut listener = transport(&text, Side::Standby).listen(&[]).unwrap();
    let _link = transport(&text, Side::Primary).connect(LONG).unwrap();
    assert!(listener.accept(LONG).unwrap().is_some());
}

#[test]
fn the_primary_waits_for_a_standby_that_comes_later() {
    let ip = own_ip();
    let primary = thread::spawn(move || connect(ip));
    thread::yield_now();
    let mut listener = listen(ip, &[]);
    let _link = primary.join().unwrap();
    assert!(listener.accept(LONG).unwrap().is_some());
}

#[test]
fn no_standby_is_a_time_out_that_says_what_to_look_at() {
    let limit = Duration::from_millis(300);
    let e = fail(transport(&config(own_ip()), Side::Primary).connect(limit));
    assert_eq!(e.code(), ErrorCode::TimedOut);
    let text = e.chain();
    assert!(text.contains("is `aventine standby` running there?") && text.contains("refused"), "{text}");
    let e = fail(
        transport(&format!("peer = 'no-such-host.invalid:7400'\n{}", security()), Side::Primary)
            .connect(limit),
    );
    assert_eq!(e.code(), ErrorCode::TimedOut);
    assert!(e.chain().contains("no-such-host.invalid"), "{}", e.chain());
}

#[test]
fn missing_keys_and_ports_in_use_are_clear() {
    let ip = own_ip();
    let e = fail(transport(&format!("listen = '{ip}:{PORT}'\n{}", security()), Side::Primary).connect(LONG));
    assert!(e.code() == ErrorCode::Config && e.to_string().contains("`peer`"), "{e}");
    let mut only_peer = transport(&format!("peer = 'x:1'\n{}", security()), Side::Standby);
    let e = fail(only_peer.listen(&[]));
    assert!(e.code() == ErrorCode::Config && e.to_string().contains("`listen`"), "{e}");
    let _listener = listen(ip, &[]);
    let e = fail(transport(&config(ip), Side::Standby).listen(&[]));
    assert!(e.code() == ErrorCode::Unavailable && e.to_string().contains("Port 7400 is in use"), "{e}");
    let e = fail(transport(&format!("listen = '192.0.2.1:7400'\n{}", security()), Side::Standby).listen(&[]));
    assert!(e.to_string().contains("no address of this host"), "{e}");
}

#[test]
fn a_channel_is_opened_once_and_an_ended_link_is_not_known() {
    let ip = own_ip();
    let mut p = pair(ip, &[]);
    let _control = open(&mut p, "control", None);
    let _pages = open(&mut p, "pages", None);
    let e = fail(p.primary.open("pages", None, LONG));
    assert!(e.chain().contains("already"), "{}", e.chain());
    let e = fail(p.standby.open("never", None, Duration::from_millis(10)));
    assert_eq!(e.code(), ErrorCode::TimedOut);
    assert!(e.source().is_none() && e.to_string().contains("never"), "{e}");
    let Pair { listener: _listener, mut primary, standby } = p;
    drop((_control.1, _pages.1, standby));
    let e = fail(primary.open("disk:a", None, LONG));
    assert!(e.code() == ErrorCode::PeerLost && e.chain().contains("no longer knows"), "{}", e.chain());
}
