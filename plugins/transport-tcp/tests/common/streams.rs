//! Channels on several connections.

use super::common::proxy::{Deed, Proxy};
use super::common::{Ends, LONG, PORT, fail, own_ip, recv_vec, security, transport};
use aventine_api::{ChannelRx, ErrorCode, Link, Listener, Side};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;

const STRIPE: usize = 64 << 10;

fn config(listen: Ipv4Addr, peer: Ipv4Addr, more: &str) -> String {
    format!("listen = '{listen}:{PORT}'\npeer = '{peer}:{PORT}'\n{more}\n{}", security())
}

struct Hosts {
    _listener: Box<dyn Listener>,
    primary: Box<dyn Link>,
    standby: Box<dyn Link>,
}

/// A link; the primary dials `to`.
fn hosts(ip: Ipv4Addr, to: Ipv4Addr, primary: &str, standby: &str) -> Hosts {
    let mut listener = transport(&config(ip, ip, standby), Side::Standby).listen(&[]).unwrap();
    let primary = transport(&config(to, to, primary), Side::Primary).connect(LONG).unwrap();
    let standby = listener.accept(LONG).unwrap().unwrap();
    Hosts { _listener: listener, primary, standby }
}

impl Hosts {
    fn open(&mut self, name: &str) -> (Ends, Ends) {
        let near = self.primary.open(name, None, LONG).unwrap();
        (near, self.standby.open(name, None, LONG).unwrap())
    }
}

/// Every word says its place.
fn pattern(words: u32) -> Vec<u8> {
    (0..words).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn random(seed: &mut u64, below: usize) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed as usize % below
}

/// Parts and pieces of every size, both ways at once: each end gets the bytes of a plain stream.
#[test]
fn bytes_keep_their_order_however_they_are_cut() {
    let ip = own_ip();
    let mut hosts = hosts(ip, ip, "streams = 3", "streams = 5");
    let _control = hosts.open("control");
    let (near, far) = hosts.open("pages");
    let all = pattern(4 << 20);
    const SIZES: [usize; 4] = [12, 5000, STRIPE + 1, 9 * STRIPE];
    // They outlive the threads: a connection that is let go of with something unread, such as TLS's last word, is reset, and what is
    // under way on it is lost.
    let (mut near_rx, mut far_rx) = (near.1, far.1);
    thread::scope(|scope| {
        for (seed, mut tx, rx) in [(7, near.0, &mut far_rx), (8, far.0, &mut near_rx)] {
            let all = &all;
            scope.spawn(move || {
                let (mut seed, mut rest) = (seed, all.as_slice());
                while !rest.is_empty() {
                    let mut parts = Vec::new();
                    for _ in 0..random(&mut seed, 6) {
                        let below = SIZES[random(&mut seed, SIZES.len())];
                        let (part, after) = rest.split_at(random(&mut seed, below).min(rest.len()));
                        parts.push(part);
                        rest = after;
                    }
                    tx.send(&parts).unwrap();
                }
                tx
            });
            scope.spawn(move || {
                let (mut seed, mut at) = (seed + 70, 0);
                while at < all.len() {
                    let below = SIZES[random(&mut seed, SIZES.len())];
                    let len = random(&mut seed, below).min(all.len() - at);
                    assert!(recv_vec(rx, len) == all[at..at + len], "bytes {at}.. differ");
                    at += len;
                }
                assert_eq!(
                    fail(rx.recv(&mut [0])).code(),
                    ErrorCode::PeerLost,
                    "nothing comes after the end"
                );
            });
        }
    });
}

/// How many connections the primary makes for `pages`, beside control's.
fn connections(primary: &str, standby: &str) -> usize {
    let ip = own_ip();
    let proxy = Proxy::start(ip);
    let mut hosts = hosts(ip, proxy.ip, primary, standby);
    let _control = hosts.open("control");
    assert_eq!(proxy.connections(), 1, "control has one");
    let ((mut tx, _a), (_b, mut rx)) = hosts.open("pages");
    let all = pattern(1 << 18);
    thread::scope(|scope| {
        let sending = scope.spawn(|| tx.send(&[&all]));
        assert!(recv_vec(&mut rx, all.len()) == all);
        sending.join().unwrap().unwrap();
    });
    proxy.connections() - 1
}

#[test]
fn the_smaller_number_counts_and_none_is_one() {
    for (primary, standby, count) in [
        ("streams = 3", "streams = 2", 2),
        ("streams = 2", "streams = 16", 2),
        ("streams = 4", "", 1),
        ("", "streams = 4", 1),
    ] {
        assert_eq!(connections(primary, standby), count, "{primary:?} and {standby:?}");
    }
}

#[test]
fn one_connection_cut_during_a_send_ends_the_channel_and_no_other() {
    let ip = own_ip();
    let proxy = Proxy::start(ip);
    let mut hosts = hosts(ip, proxy.ip, "streams = 3", "streams = 3");
    let (mut control, mut control_far) = hosts.open("control");
    let ((mut tx, mut rx), (_far_tx, mut far_rx)) = hosts.open("pages");
    let all = pattern(16 << 20);
    let arm = |rx: &mut Box<dyn ChannelRx>| {
        assert!(recv_vec(rx, 10 * STRIPE) == all[..10 * STRIPE]);
        // Many stripes are still to come, on each connection.
        proxy.arm(Deed::Halve);
    };
    thread::scope(|scope| {
        let sending = scope.spawn(|| fail(tx.send(&[&all])));
        arm(&mut far_rx);
        let received = fail(far_rx.recv(&mut vec![0; all.len() - 10 * STRIPE]));
        assert_eq!(received.code(), ErrorCode::PeerLost, "{}", received.chain());
        let sent = sending.join().unwrap();
        assert_eq!(sent.code(), ErrorCode::PeerLost, "{}", sent.chain());
    });
    for lost in [tx.send(&[b"more"]), far_rx.recv(&mut [0]), rx.recv(&mut [0])] {
        assert_eq!(fail(lost).code(), ErrorCode::PeerLost);
    }
    control.0.send(&[b"lives"]).unwrap();
    assert_eq!(recv_vec(&mut control_far.1, 5), b"lives");
}

#[test]
fn abort_wakes_a_send_and_a_recv_on_all_connections() {
    for abort_near in [true, false] {
        let ip = own_ip();
        let mut hosts = hosts(ip, ip, "streams = 4", "streams = 4");
        let ((mut tx, _rx), (_far_tx, mut far_rx)) = hosts.open("pages");
        let ((_tx, _disk_rx), (_disk_tx, mut disk_rx)) = hosts.open("disk:a");
        let aborter = if abort_near { hosts.primary.aborter() } else { hosts.standby.aborter() };
        thread::scope(|scope| {
            let sending = scope.spawn(move || fail(tx.send(&[&pattern(16 << 20)])));
            let receiving = scope.spawn(move || fail(disk_rx.recv(&mut vec![0; 9 * STRIPE])));
            // The sender is at work.
            recv_vec(&mut far_rx, 3 * STRIPE);
            aborter.abort();
            for lost in [sending.join().unwrap(), receiving.join().unwrap()] {
                assert_eq!(lost.code(), ErrorCode::PeerLost, "{}", lost.chain());
            }
        });
    }
}

/// In plaintext: whoever gets into TLS has been authenticated.
#[test]
fn nobody_joins_a_channel_that_lacks_no_connection_or_takes_a_place_that_is_taken() {
    if crate::TLS {
        return;
    }
    let ip = own_ip();
    let mut listener = transport(&config(ip, ip, "streams = 3"), Side::Standby).listen(&[]).unwrap();
    let dial = |name: &str, stream: u8, streams: u8| {
        let mut conn = TcpStream::connect((ip, PORT)).unwrap();
        let head = [b"aventine\0\x02".as_slice(), &[9; 16], &[stream, streams, name.len() as u8]].concat();
        conn.write_all(&[&head, name.as_bytes()].concat()).unwrap();
        let mut answer = [0; 11];
        conn.read_exact(&mut answer).unwrap();
        (conn, answer[10])
    };
    let welcome = |streams: u8| 32 + streams;
    const TAKEN: u8 = 4;
    let _control = dial("control", 0, 1);
    let mut link = listener.accept(LONG).unwrap().unwrap();
    let (mut first, said) = dial("pages", 0, 16);
    assert_eq!(said, welcome(3));
    for (stream, streams, why) in [
        (0, 3, "it is there"),
        (1, 2, "the channel has three"),
        (3, 16, "the channel has three"),
        (0, 16, "it has begun"),
    ] {
        assert_eq!(dial("pages", stream, streams).1, TAKEN, "{stream} of {streams}: {why}");
    }
    assert_eq!(dial("disk:a", 1, 3).1, TAKEN, "a channel begins with its first connection");
    let (mut third, said) = dial("pages", 2, 3);
    assert_eq!(said, welcome(3));
    assert_eq!(dial("pages", 2, 3).1, TAKEN, "it is there");
    let e = fail(link.open("pages", None, std::time::Duration::from_millis(50)));
    assert_eq!(e.code(), ErrorCode::TimedOut, "one is missing");
    let (mut second, said) = dial("pages", 1, 3);
    assert_eq!(said, welcome(3));
    let (_tx, mut rx) = link.open("pages", None, LONG).unwrap();
    for stream in 0..3 {
        assert_eq!(dial("pages", stream, 3).1, TAKEN, "the channel is whole");
    }
    let all = pattern(3 * STRIPE as u32 / 4);
    for (conn, stripe) in [&mut third, &mut second, &mut first].into_iter().zip(all.rchunks(STRIPE)) {
        conn.write_all(stripe).unwrap();
    }
    assert!(recv_vec(&mut rx, all.len()) == all);
}
