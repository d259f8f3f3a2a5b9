//! The rules of transports, and what is this one's own.

use aventine_api::{ErrorCode, Factory, Kind, PluginEntry, Side, Transport};
use aventine_conformance::form::{Ears, Form, Native, context};
use aventine_conformance::transport::TransportBench;
use aventine_transport_unix as _;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

fn entry() -> &'static PluginEntry {
    Native::entry(Kind::Transport, "unix")
}

struct Bench {
    dir: TempDir,
    strangers: Vec<UnixStream>,
}

impl TransportBench for Bench {
    fn start() -> Self {
        Bench { dir: TempDir::new().unwrap(), strangers: Vec::new() }
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn make(place: &str, side: Side) -> Box<dyn Transport> {
        let Factory::Transport(make) = entry().factory else { panic!("a transport") };
        make("path = 'link'", context(Kind::Transport, Path::new(place), side, Arc::new(Ears::default())))
            .unwrap()
    }

    fn stranger(&mut self, words: &[u8]) {
        let mut stranger = UnixStream::connect(self.dir.path().join("link")).unwrap();
        stranger.write_all(words).unwrap();
        self.strangers.push(stranger);
    }
}

aventine_conformance::transport!(Bench);

#[test]
fn a_standby_that_listens_and_does_not_accept_is_a_time_out() {
    let bench = Bench::start();
    let _listener = Bench::make(&bench.place(), Side::Standby).listen(&[]).unwrap();
    let mut primary = Bench::make(&bench.place(), Side::Primary);
    assert_eq!(primary.connect(Duration::from_millis(50)).err().unwrap().code(), ErrorCode::TimedOut);
}

#[test]
fn the_last_listener_has_the_path_and_lets_its_owner_in_alone() {
    let bench = Bench::start();
    let listen = || Bench::make(&bench.place(), Side::Standby).listen(&[]).unwrap();
    let (old, mut new) = (listen(), listen());
    drop(old);
    let mode = bench.dir.path().join("link").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut primary = Bench::make(&bench.place(), Side::Primary);
    let primary = thread::spawn(move || primary.connect(Bench::PATIENCE).map(drop));
    assert!(new.accept(Bench::PATIENCE).unwrap().is_some());
    primary.join().unwrap().unwrap();
}

#[test]
fn keys_are_checked() {
    assert!((entry().validate)("").unwrap_err().to_string().contains("missing key `path`"));
    assert!((entry().validate)("path = 'a'\npeer = 'b'").unwrap_err().to_string().contains("unknown key"));
    assert!((entry().schema)().contains("\"path\""));
}
