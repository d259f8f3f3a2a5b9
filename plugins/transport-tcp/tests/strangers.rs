//! Connections that are not what they should be.

mod common;

use aventine_api::{ErrorCode, Side};
use common::{LONG, PORT, config, connect, fail, listen, own_ip, recv_vec, transport};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const TLS: bool = false;

fn greeting(version: u16, link: &[u8; 16], name: &[u8]) -> Vec<u8> {
    [b"aventine".as_slice(), &version.to_be_bytes(), link, &[0, 1, name.len() as u8], name].concat()
}

#[test]
fn strangers_disturb_nobody() {
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    let dial = || TcpStream::connect((ip, PORT)).unwrap();
    // Silent ones, more than are heard at once; half a greeting; another protocol; names that are none.
    let silent: Vec<_> = (0..100).map(|_| dial()).collect();
    let mut half = dial();
    half.write_all(b"aventine\0").unwrap();
    let mut http = dial();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(http.read(&mut [0; 64]).unwrap_or(0), 0, "another protocol is not answered");
    for (bytes, answer) in [
        (greeting(1, &[1; 16], b"control"), 2),
        (greeting(2, &[1; 16], b"pages"), 3),
        (greeting(2, &[1; 16], b""), 6),
        (greeting(2, &[1; 16], b"a b"), 6),
        (greeting(2, &[1; 16], &[b'x'; 200]), 6),
    ] {
        let mut stream = dial();
        stream.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, [b"AVENTINE\0\x02".as_slice(), &[answer]].concat(), "{bytes:?}");
    }
    let mut primary = connect(ip);
    let mut standby = listener.accept(LONG).unwrap().expect("the real one is heard");
    let (mut tx, _a) = primary.open("control", None, LONG).unwrap();
    let (_b, mut rx) = standby.open("control", None, LONG).unwrap();
    tx.send(&[b"real"]).unwrap();
    assert_eq!(recv_vec(&mut rx, 4), b"real");
    assert!(listener.accept(Duration::ZERO).unwrap().is_none(), "no stranger became a link");
    drop((silent, half));
}

/// A listener that speaks, but not as a standby does.
fn impostor(ip: Ipv4Addr, says: &'static [u8]) -> thread::JoinHandle<()> {
    let listener = TcpListener::bind((ip, PORT)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(says).unwrap();
        // Until the primary hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

#[test]
fn another_service_and_another_version_are_told_apart_at_once() {
    for (says, code, word) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(), ErrorCode::Corrupt, "is no Aventine standby"),
        (
            b"AVENTINE\x00\x03\x02",
            ErrorCode::Refused,
            "speaks version 3 of the transport, this host version 2",
        ),
    ] {
        let ip = own_ip();
        let thread = impostor(ip, says);
        let e = fail(transport(&config(ip), Side::Primary).connect(LONG));
        assert_eq!(e.code(), code);
        assert!(e.chain().contains(word), "{}", e.chain());
        thread.join().unwrap();
    }
}

#[test]
fn primaries_that_gave_up_make_room_and_are_not_accepted() {
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    for _ in 0..40 {
        drop(connect(ip));
    }
    let mut primary = connect(ip);
    let mut standby = listener.accept(LONG).unwrap().unwrap();
    let (mut tx, _a) = primary.open("control", None, LONG).unwrap();
    tx.send(&[b"here"]).unwrap();
    let (_b, mut rx) = standby.open("control", None, LONG).unwrap();
    assert_eq!(recv_vec(&mut rx, 4), b"here");
}
