//! Who is let in, who is not, and what both sides then say.

mod common;

use aventine_api::{ErrorCode, Side};
use common::keys::{Keys, tls};
use common::log::{self, Log};
use common::{LONG, config_with, fail, own_ip, recv_vec, transport, try_transport};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

const TLS: bool = true;
const PLAINTEXT: &str = "unsafe_plaintext = true";

/// A primary that is not let in: says what both sides say. One that is `good` comes in afterwards.
fn refused(log: &Log, standby: &str, primary: &str, primary_says: &str, standby_says: &str, good: &str) {
    let ip = own_ip();
    let mut listener = transport(&config_with(ip, standby), Side::Standby).listen(&[]).unwrap();
    let e = fail(transport(&config_with(ip, primary), Side::Primary).connect(LONG));
    assert_eq!(e.code(), ErrorCode::Refused, "{}", e.chain());
    assert!(e.chain().contains(primary_says), "{}", e.chain());
    log.says(standby_says);
    let mut primary = transport(&config_with(ip, good), Side::Primary).connect(LONG).unwrap();
    let mut accepted = listener.accept(LONG).unwrap().expect("the good one is heard");
    let (mut tx, _a) = primary.open("control", None, LONG).unwrap();
    let (_b, mut rx) = accepted.open("control", None, LONG).unwrap();
    tx.send(&[b"good"]).unwrap();
    assert_eq!(recv_vec(&mut rx, 4), b"good");
}

fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
}

fn too_new(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2200, 1, 1);
    params.not_after = date_time_ymd(2201, 1, 1);
}

#[test]
fn keys_of_another_ca() {
    let log = log::start();
    let (keys, others) = (Keys::new(), Keys::new());
    let good = keys.node("alpha", |_| {});
    let other = others.node("beta", |_| {});
    refused(
        &log,
        &good,
        &other,
        "its certificate was not issued by the `ca` of this host's `tls`",
        "it refused this host's certificate, which was not issued by the `ca` of the other host's `tls`",
        &good,
    );
    // Only its own certificate is of the other CA: it trusts the standby, and not the other way round.
    let mixed = tls(&keys.path("ca.pem"), &others.path("beta.pem"), &others.path("beta.key"));
    refused(
        &log,
        &good,
        &mixed,
        "it refused this host's certificate, which was not issued by the `ca` of the other host's `tls`",
        "A connection was refused: its certificate was not issued by the `ca` of this host's `tls`",
        &good,
    );
}

#[test]
fn certificates_out_of_their_time() {
    let log = log::start();
    let keys = Keys::new();
    let good = keys.node("good", |_| {});
    refused(
        &log,
        &good,
        &keys.node("old", expired),
        "it refused this host's certificate, which has expired",
        "A connection was refused: its certificate has expired",
        &good,
    );
    refused(
        &log,
        &good,
        &keys.node("new", too_new),
        "which has expired, or is not valid yet by its clock",
        "A connection was refused: its certificate is not valid yet; compare the clocks",
        &good,
    );
    let ip = own_ip();
    let old = config_with(ip, &keys.node("old", expired));
    let _listener = transport(&old, Side::Standby).listen(&[]).unwrap();
    let e = fail(transport(&config_with(ip, &good), Side::Primary).connect(LONG));
    assert_eq!(e.code(), ErrorCode::Refused);
    assert!(e.chain().contains("its certificate has expired"), "{}", e.chain());
    log.says("it refused this host's certificate, which has expired");
}

#[test]
fn certificates_for_something_else() {
    let log = log::start();
    let keys = Keys::new();
    let good = keys.node("good", |_| {});
    let only = |usage| move |p: &mut CertificateParams| p.extended_key_usages = vec![usage];
    refused(
        &log,
        &good,
        &keys.node("web", only(ExtendedKeyUsagePurpose::ServerAuth)),
        "it refused this host's certificate, which is not that of a node",
        "A connection was refused: its certificate is not that of a node",
        &good,
    );
    let ip = own_ip();
    let user = config_with(ip, &keys.node("user", only(ExtendedKeyUsagePurpose::ClientAuth)));
    let _listener = transport(&user, Side::Standby).listen(&[]).unwrap();
    let e = fail(transport(&config_with(ip, &good), Side::Primary).connect(LONG));
    assert!(e.chain().contains("its certificate is not that of a node"), "{}", e.chain());
    log.says("it refused this host's certificate, which is not that of a node");
}

#[test]
fn nodes_that_are_not_named() {
    let log = log::start();
    let keys = Keys::new();
    let (alpha, beta, gamma) =
        (keys.node("alpha", |_| {}), keys.node("beta", |_| {}), keys.node("gamma", |_| {}));
    let pair = |tls: &str| tls.replace(" }", ", nodes = ['alpha', 'beta'] }");
    refused(
        &log,
        &pair(&beta),
        &gamma,
        "it refused this host's certificate, which it cannot read, or which carries none of the names in `nodes`",
        "A connection was refused: its certificate carries none of the names in `nodes` of this host's `tls`",
        &pair(&alpha),
    );
    let ip = own_ip();
    let _listener = transport(&config_with(ip, &gamma), Side::Standby).listen(&[]).unwrap();
    let e = fail(transport(&config_with(ip, &pair(&alpha)), Side::Primary).connect(LONG));
    assert!(e.chain().contains("carries none of the names in `nodes` of this host's"), "{}", e.chain());
    log.says("which it cannot read, or which carries none of the names in `nodes` of its `tls`");
}

#[test]
fn plaintext_against_tls() {
    let log = log::start();
    let keys = Keys::new();
    let good = keys.node("good", |_| {});
    refused(
        &log,
        &good,
        PLAINTEXT,
        "encrypts and this host does not; give both hosts the same `tls`",
        "it is not encrypted; the other host has `unsafe_plaintext = true` and this one `tls`",
        &good,
    );
    refused(
        &log,
        PLAINTEXT,
        &good,
        "has `unsafe_plaintext = true` and this host `tls`",
        "it is encrypted, and this host has `unsafe_plaintext = true`",
        PLAINTEXT,
    );
}

#[test]
fn files_that_cannot_be_used_say_which_and_why() {
    let keys = Keys::new();
    let _ = (keys.node("a", |_| {}), keys.node("b", |_| {}));
    let [ca, cert, key] = ["ca.pem", "a.pem", "a.key"].map(|f| keys.path(f));
    let empty = keys.path("empty");
    fs::write(&empty, "").unwrap();
    let garbage = keys.path("garbage");
    fs::write(&garbage, "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n").unwrap();
    let none = keys.path("none");
    let says = |security: String, what: &str| {
        for side in [Side::Primary, Side::Standby] {
            let e = fail(try_transport(&config_with(own_ip(), &security), side));
            assert_eq!(e.code(), ErrorCode::Config, "{}", e.chain());
            assert!(e.chain().contains(what), "{what:?}: {}", e.chain());
        }
    };
    says(tls(&none, &cert, &key), "none, the `ca` of `tls` in [transport]; `aventine keys` makes one");
    says(tls(&ca, &none, &key), "the `cert` of `tls`");
    says(tls(&ca, &cert, &none), "the `key` of `tls`");
    says(tls(&ca, &key, &cert), "are `cert` and `key` exchanged?");
    says(tls(&ca, &cert, &cert), "the `key` of `tls` in [transport], holds no private key");
    says(tls(&ca, &cert, &keys.path("b.key")), "do not belong together");
    says(tls(&empty, &cert, &key), "holds no certificate");
    says(tls(&garbage, &cert, &key), "is damaged");
    says(tls(&ca, &garbage, &key), "is damaged");
    for mode in [0o644, 0o640, 0o602] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        says(tls(&ca, &cert, &key), &format!("is open to other users (mode {mode:03o}); run: chmod 600"));
    }
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    assert!(try_transport(&config_with(own_ip(), &tls(&ca, &cert, &key)), Side::Primary).is_ok());
}
