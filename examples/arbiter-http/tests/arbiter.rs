//! Claims, with a store that is honest, that ignores conditions, that loses answers, that is gone.

#[path = "common/store.rs"]
mod store;

use aventine_api::{
    Arbiter, Context, Epoch, ErrorCode, Factory, Host, PluginEntry, PluginError, SessionId, Side, Verdict,
    inventory,
};
use aventine_arbiter_http as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use store::Store;

struct NoEngine;

impl Host for NoEngine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>.into_iter().find(|e| e.name == "http").expect("the plugin is linked in")
}

fn store() -> Store {
    Store::start(TcpListener::bind("127.0.0.1:0").unwrap())
}

fn arbiter(store: &Store) -> Box<dyn Arbiter> {
    let Factory::Arbiter(make) = entry().factory else { panic!("an arbiter") };
    let context = Context {
        guest: "web".into(),
        id: "arbiter".into(),
        side: Side::Primary,
        state_dir: std::env::temp_dir(),
        config_dir: std::env::temp_dir(),
        host: Arc::new(NoEngine),
    };
    make(&format!("url = 'http://{}/a/b'\nunsafe_plaintext = true", store.address), context).unwrap()
}

const SESSION: SessionId = SessionId([7; 16]);

#[test]
fn of_many_claims_one_wins_and_stays_the_winner() {
    let store = store();
    for number in 0..50 {
        let session = SessionId([number; 16]);
        let claims: Vec<_> = [Side::Primary, Side::Standby, Side::Standby, Side::Primary]
            .map(|side| {
                let mut arbiter = arbiter(&store);
                thread::spawn(move || (side, arbiter.claim(session, side).unwrap()))
            })
            .into_iter()
            .map(|claim| claim.join().unwrap())
            .collect();
        let owners: Vec<_> =
            claims.iter().map(|(side, v)| if *v == Verdict::Won { *side } else { side.other() }).collect();
        assert!(owners.iter().all(|owner| *owner == owners[0]), "{claims:?}");
        // From a process that knows nothing of it.
        assert_eq!(arbiter(&store).claim(session, owners[0]).unwrap(), Verdict::Won);
        assert_eq!(arbiter(&store).claim(session, owners[0].other()).unwrap(), Verdict::Lost);
    }
}

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
