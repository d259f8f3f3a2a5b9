//! Encrypted links under attack: bytes that are changed, repeated, recorded or made up.

mod common;

use aventine_api::{ChannelRx, ChannelTx, ErrorCode, Listener, Side};
use common::keys::Keys;
use common::proxy::{Deed, Proxy};
use common::{LONG, PORT, config, config_with, fail, listen, log, own_ip, recv_vec, transport};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const TLS: bool = true;

type Ends = ((Box<dyn ChannelTx>, Box<dyn ChannelRx>), (Box<dyn ChannelTx>, Box<dyn ChannelRx>));

/// A channel through `proxy`.
fn through(proxy: &Proxy, listener: &mut dyn Listener) -> Ends {
    let mut primary = transport(&config(proxy.ip), Side::Primary).connect(LONG).unwrap();
    let mut standby = listener.accept(LONG).unwrap().unwrap();
    let near = primary.open("control", None, LONG).unwrap();
    (near, standby.open("control", None, LONG).unwrap())
}

#[test]
fn changed_repeated_and_cut_records_end_the_link_and_nothing_of_them_is_handed_out() {
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    let proxy = Proxy::start(ip);
    for (deed, why) in [
        (Deed::Flip, "not genuine, or was changed on the way"),
        (Deed::Repeat, "not genuine, or was changed on the way"),
        (Deed::Halve, "was cut"),
    ] {
        let ((mut tx, mut rx), (_far_tx, mut far_rx)) = through(&proxy, listener.as_mut());
        tx.send(&[b"before"]).unwrap();
        assert_eq!(recv_vec(&mut far_rx, 6), b"before");
        proxy.arm(deed);
        tx.send(&[b"during"]).unwrap();
        if deed == Deed::Repeat {
            assert_eq!(recv_vec(&mut far_rx, 6), b"during");
        }
        let mut byte = [0];
        let e = fail(far_rx.recv(&mut byte));
        assert_eq!((e.code(), byte), (ErrorCode::PeerLost, [0]), "{deed:?}: {}", e.chain());
        assert!(e.chain().contains(why), "{deed:?}: {}", e.chain());
        drop((far_rx, _far_tx));
        assert_eq!(fail(rx.recv(&mut [0])).code(), ErrorCode::PeerLost, "{deed:?}");
    }
}

#[test]
fn a_recorded_connection_is_of_no_use() {
    let log = log::start();
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    let proxy = Proxy::start(ip);
    let ((mut tx, _rx), (_far_tx, mut far_rx)) = through(&proxy, listener.as_mut());
    tx.send(&[b"secret"]).unwrap();
    assert_eq!(recv_vec(&mut far_rx, 6), b"secret");
    let recorded = proxy.recorded(0);
    assert!(!recorded.windows(6).any(|w| w == b"secret" || w == b"aventi"), "it is readable on the wire");
    let replay = || {
        let mut replay = TcpStream::connect((ip, PORT)).unwrap();
        replay.write_all(&recorded).unwrap();
        replay.read_to_end(&mut Vec::new()).unwrap();
        log.says("A connection was refused: what it sent is not genuine");
    };
    replay();
    tx.send(&[b"lives"]).unwrap();
    assert_eq!(recv_vec(&mut far_rx, 5), b"lives", "the recorded link is not touched");
    drop((tx, far_rx));
    replay();
    assert!(listener.accept(Duration::ZERO).unwrap().is_none(), "a replay became a link");
}

/// What a client hello of TLS 1.2 looks like: no extensions, so no newer version.
fn old_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
    let handshake = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[0x16, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
}

#[test]
fn hostile_and_broken_streams_disturb_nobody() {
    let log = log::start();
    let ip = own_ip();
    let mut listener = listen(ip, &[]);
    let send = |bytes: &[u8]| {
        let mut stream = TcpStream::connect((ip, PORT)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut old = send(&old_hello());
    log.says("A connection was refused: it does not speak TLS 1.3");
    let mut alert = Vec::new();
    old.read_to_end(&mut alert).unwrap();
    assert_eq!((alert[0], alert.len()), (0x15, 7), "the other side is told, and nothing else");
    let _http = send(b"GET / HTTP/1.1\r\n\r\n");
    log.says("A connection was refused: it does not speak TLS");
    // The length of a record, of a handshake message, of a list in it: longer than what comes, or than is allowed.
    let held = [
        send(&[0x16, 3, 1, 0x40, 0]),
        send(&[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]),
        send(&old_hello()[..20]),
        send(&[0x16]),
    ];
    let _ = send(&[0x16, 3, 1, 0xff, 0xff, 1]);
    log.says("A connection was refused: TLS failed");
    let mut seed = 88_172_645_463_325_252u64;
    for length in 1..200 {
        let noise = std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        });
        let mut bytes: Vec<u8> = noise.take(length * 7).collect();
        bytes[0] = 0x16;
        // It may be refused before it has written all of it.
        let _ = TcpStream::connect((ip, PORT)).unwrap().write_all(&bytes);
    }
    let mut primary = transport(&config(ip), Side::Primary).connect(LONG).unwrap();
    let mut standby = listener.accept(LONG).unwrap().expect("the real one is heard");
    let (mut tx, _a) = primary.open("control", None, LONG).unwrap();
    let (_b, mut rx) = standby.open("control", None, LONG).unwrap();
    tx.send(&[b"real"]).unwrap();
    assert_eq!(recv_vec(&mut rx, 4), b"real");
    assert!(listener.accept(Duration::ZERO).unwrap().is_none(), "no stranger became a link");
    drop(held);
}

/// A client of its own making, with or without a certificate.
fn client(keys: &Keys, ip: Ipv4Addr, certificate: bool) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(keys.path("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate {
        false => config.with_no_client_auth(),
        true => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(keys.path("node.pem")).unwrap()],
                rustls::pki_types::PrivateKeyDer::from_pem_file(keys.path("node.key")).unwrap(),
            )
            .unwrap(),
    };
    let tls = ClientConnection::new(Arc::new(config), "node".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect((ip, PORT)).unwrap();
    stream.set_nodelay(true).unwrap();
    StreamOwned::new(tls, stream)
}

fn greeting() -> Vec<u8> {
    [b"aventine\0\x02".as_slice(), &[9; 16], &[0, 1, 7], b"control"].concat()
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let log = log::start();
    let (ip, keys) = (own_ip(), Keys::new());
    let node = keys.node("node", |_| {});
    let mut listener = transport(&config_with(ip, &node), Side::Standby).listen(&[]).unwrap();
    let mut stranger = client(&keys, ip, false);
    let _ = stranger.write_all(&greeting());
    let e = stranger.read(&mut [0; 11]).expect_err("it is refused").to_string();
    assert!(e.contains("CertificateRequired"), "{e}");
    log.says("A connection was refused: it showed no certificate");
    assert!(listener.accept(Duration::ZERO).unwrap().is_none());
}

/// Long links renew their keys.
#[test]
fn keys_are_renewed_without_a_gap() {
    let (ip, keys) = (own_ip(), Keys::new());
    let node = keys.node("node", |_| {});
    let mut listener = transport(&config_with(ip, &node), Side::Standby).listen(&[]).unwrap();
    let mut peer = client(&keys, ip, true);
    peer.write_all(&greeting()).unwrap();
    peer.read_exact(&mut [0; 11]).unwrap();
    let mut standby = listener.accept(LONG).unwrap().unwrap();
    let (mut tx, mut rx) = standby.open("control", None, LONG).unwrap();
    let echo = thread::spawn(move || {
        for i in 0..200u32 {
            assert_eq!(recv_vec(&mut rx, 4), i.to_le_bytes());
            tx.send(&[&i.to_be_bytes()]).unwrap();
        }
        (tx, rx)
    });
    for i in 0..200u32 {
        peer.conn.refresh_traffic_keys().unwrap();
        peer.write_all(&i.to_le_bytes()).unwrap();
        let mut back = [0; 4];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(back, i.to_be_bytes());
    }
    drop(echo.join().unwrap());
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end is said inside TLS, too");
}
