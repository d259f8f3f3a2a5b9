//! Claims, with a store that is honest, that ignores conditions, that loses answers, that is gone.

#[path = "common/store.rs"]
mod store;

use aventine_api::{Arbiter, ErrorCode, Factory, Kind, PluginEntry, SessionId, Side, Verdict};
use aventine_arbiter_http as _;
use aventine_conformance::arbiter::ArbiterBench;
use aventine_conformance::form::{Ears, Form, Native, context};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use store::Store;

fn entry() -> &'static PluginEntry {
    Native::entry(Kind::Arbiter, "http")
}

fn store() -> Store {
    Store::start(TcpListener::bind("127.0.0.1:0").unwrap())
}

fn at(url: &str, side: Side) -> Box<dyn Arbiter> {
    let Factory::Arbiter(make) = entry().factory else { panic!("an arbiter") };
    let context = context(Kind::Arbiter, Path::new("/nonexistent"), side, Arc::new(Ears::default()));
    make(&format!("url = '{url}'\nunsafe_plaintext = true\ntimeout = '500ms'"), context).unwrap()
}

fn arbiter(store: &Store) -> Box<dyn Arbiter> {
    at(&format!("http://{}/a/b", store.address), Side::Primary)
}

impl ArbiterBench for Store {
    fn start() -> Self {
        store()
    }

    fn place(&self) -> String {
        format!("http://{}/a/b", self.address)
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        at(place, side)
    }

    fn vanish(&mut self) {
        self.loses_answers.store(true, Ordering::SeqCst);
    }

    fn reappear(&mut self) {
        self.loses_answers.store(false, Ordering::SeqCst);
    }
}

aventine_conformance::arbiter!(Store);

const SESSION: SessionId = SessionId([7; 16]);

#[test]
fn a_claim_whose_answer_was_lost_is_found_again() {
    let store = store();
    let mut primary = arbiter(&store);
    primary.probe().unwrap();
    store.loses_answers.store(true, Ordering::SeqCst);
    assert!(primary.claim(SESSION, Side::Primary).is_err(), "nothing is known");
    store.loses_answers.store(false, Ordering::SeqCst);
    assert_eq!(arbiter(&store).claim(SESSION, Side::Standby).unwrap(), Verdict::Lost);
    assert_eq!(primary.claim(SESSION, Side::Primary).unwrap(), Verdict::Won);
}

#[test]
fn a_store_that_ignores_conditions_decides_nothing() {
    let store = store();
    store.ignores_conditions.store(true, Ordering::SeqCst);
    assert_eq!(arbiter(&store).probe().unwrap_err().code(), ErrorCode::Refused);
    assert_eq!(arbiter(&store).claim(SESSION, Side::Primary).unwrap_err().code(), ErrorCode::Refused);
    assert!(!store.objects.lock().unwrap().keys().any(|path| path.contains(&SESSION.to_string())));
}

#[test]
fn what_is_no_verdict_is_an_error_and_so_is_a_store_that_is_gone() {
    let store = store();
    store.objects.lock().unwrap().insert(format!("/a/b/{SESSION}"), format!("{SESSION} nobody\n"));
    let error = arbiter(&store).claim(SESSION, Side::Primary).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt);
    assert!(error.to_string().contains(&SESSION.to_string()), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = Store { address: gone.local_addr().unwrap(), ..store };
    assert_eq!(arbiter(&gone).probe().unwrap_err().code(), ErrorCode::Unavailable);
}

#[test]
fn keys_are_checked_at_their_place() {
    for (text, path) in [
        ("url = 'https://a/b'\nunsafe_plaintext = true", "url"),
        ("url = 'http://a'\nunsafe_plaintext = true", "url"),
        ("url = 'http://a/b c'\nunsafe_plaintext = true", "url"),
        ("url = 'http://a/b'", "url"),
        ("url = 'http://a/b'\nunsafe_plaintext = true\ntimeout = '1h'", "timeout"),
    ] {
        assert_eq!((entry().validate)(text).unwrap_err().path, [path], "{text}");
    }
    for url in ["http://[::1]:80/x", "http://[::1]/x", "http://witness.example:8080/aventine/web/"] {
        (entry().validate)(&format!("url = '{url}'\nunsafe_plaintext = true")).unwrap();
    }
}
