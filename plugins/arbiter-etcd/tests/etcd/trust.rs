//! Endpoints with https.

use crate::cluster::{Cluster, own_ip};
use crate::sides::{LONG, make, session, until};
use aventine_api::{Arbiter, ErrorCode, PluginError, Side, Verdict};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

/// A directory with a CA and what it issued.
struct Keys {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Keys {
    fn new() -> Keys {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Keys { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Makes `NAME.pem` and `NAME.key` for `address`.
    fn issue(&self, name: &str, address: &str) {
        let mut params = CertificateParams::new([address.to_owned()]).unwrap();
        // etcd's gateway is a client of its own server.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        let secret = self.path(&format!("{name}.key"));
        fs::write(&secret, key.serialize_pem()).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    }
}

fn etcd(config: &str, dir: &Path) -> Result<Box<dyn Arbiter>, PluginError> {
    make(config, "web", dir, Side::Primary)
}

#[test]
fn only_an_endpoint_of_the_ca_is_believed_and_only_a_client_of_it_is_heard() {
    let (keys, other) = (Keys::new(), Keys::new());
    let ip = own_ip();
    keys.issue("member", &ip.to_string());
    let words = [
        ["--client-cert-auth=true", "--trusted-ca-file"].map(String::from),
        [keys.path("ca.pem").display().to_string(), "--cert-file".into()],
        [keys.path("member.pem").display().to_string(), "--key-file".into()],
    ];
    let mut tls = words.as_flattened().to_vec();
    tls.push(keys.path("member.key").display().to_string());
    let cluster = Cluster::launch(&[ip], &tls);
    for keys in [&keys, &other] {
        keys.issue("host", "alpha");
    }

    // Paths are meant from the configuration's directory.
    let own = "ca = 'ca.pem'\ncert = 'host.pem'\nkey = 'host.key'";
    let config = |files: &str| format!("{}\n{files}", cluster.config());
    let mut arbiter = etcd(&config(own), keys.dir.path()).unwrap();
    until(LONG, || arbiter.probe());

    let strange =
        format!("ca = 'ca.pem'\ncert = {:?}\nkey = {:?}", other.path("host.pem"), other.path("host.key"));
    let foreign = format!("ca = {:?}\ncert = 'host.pem'\nkey = 'host.key'", other.path("ca.pem"));
    for (files, says) in [("ca = 'ca.pem'", ""), (&strange, ""), (&foreign, "invalid peer certificate")] {
        let mut refused = etcd(&config(files), keys.dir.path()).unwrap();
        let error = refused.claim(session(1), Side::Standby).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(error.to_string().contains(says), "{error}");
    }
    // An endpoint at an address that its certificate does not name.
    let forward = format!("endpoints = ['https://{}']\n{own}", forward((ip, 2379)));
    let error = etcd(&forward, keys.dir.path()).unwrap().probe().unwrap_err();
    assert!(error.to_string().contains("not valid for"), "{error}");
    assert_eq!(arbiter.claim(session(1), Side::Primary).unwrap(), Verdict::Won, "a refused side has claimed");
}

#[test]
fn a_silent_handshake_ends() {
    let keys = Keys::new();
    let listener = TcpListener::bind((own_ip(), 2379)).unwrap();
    let config = format!("endpoints = ['https://{}']\nca = 'ca.pem'", listener.local_addr().unwrap());
    let error = etcd(&config, keys.dir.path()).unwrap().claim(session(1), Side::Primary).unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let keys = Keys::new();
    keys.issue("a", "alpha");
    keys.issue("b", "beta");
    keys.issue("open", "alpha");
    fs::set_permissions(keys.path("open.key"), Permissions::from_mode(0o640)).unwrap();
    fs::write(keys.path("empty"), "").unwrap();
    for (ca, cert, key, named, says) in [
        ("no.pem", "a.pem", "a.key", "no.pem", "the `ca`"),
        ("ca.pem", "no.pem", "a.key", "no.pem", "the `cert`"),
        ("ca.pem", "a.pem", "no.key", "no.key", "the `key`"),
        ("empty", "a.pem", "a.key", "empty", "PEM"),
        ("ca.pem", "a.key", "a.pem", "a.key", "PEM"),
        ("ca.pem", "open.pem", "open.key", "open.key", "chmod 600"),
        ("ca.pem", "a.pem", "b.key", "b.key", "together"),
    ] {
        let config =
            format!("endpoints = ['https://127.0.0.1:1']\nca = '{ca}'\ncert = '{cert}'\nkey = '{key}'");
        let error = etcd(&config, keys.dir.path()).err().expect("this cannot work");
        assert_eq!(error.code(), ErrorCode::Config);
        let text = error.to_string();
        assert!(text.contains(&keys.path(named).display().to_string()) && text.contains(says), "{text}");
    }
}

/// Another address of the server at `to`.
fn forward(to: (Ipv4Addr, u16)) -> SocketAddr {
    let listener = TcpListener::bind((own_ip(), 2379)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming().map(Result::unwrap) {
            let far = TcpStream::connect(to).unwrap();
            let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut back_from, &mut back_to));
            thread::spawn(move || io::copy(&mut &near, &mut &far));
        }
    });
    address
}
