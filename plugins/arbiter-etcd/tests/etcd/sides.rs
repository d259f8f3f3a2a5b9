//! The two hosts.

use crate::cluster::{Cluster, own_ip};
use aventine_api::{
    Arbiter, Context, Epoch, Factory, Host, Kind, PluginEntry, PluginError, SessionId, Side, Verdict,
};
use aventine_arbiter_etcd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Generous: reaching it is a failure.
pub(crate) const LONG: Duration = Duration::from_secs(60);

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

/// Makes the plugin as the engine does. Plaintext is accepted where it is used.
pub(crate) fn make(
    config: &str,
    guest: &str,
    config_dir: &Path,
    side: Side,
) -> Result<Box<dyn Arbiter>, PluginError> {
    let entry = aventine_api::inventory::iter::<PluginEntry>
        .into_iter()
        .find(|e| e.name == "etcd" && e.factory.kind() == Kind::Arbiter)
        .expect("the plugin is registered");
    let plain = if config.contains("http://") { "unsafe_plaintext = true\n" } else { "" };
    let config = &format!("{plain}{config}");
    (entry.validate)(config).unwrap();
    let Factory::Arbiter(make) = entry.factory else { panic!("not an arbiter") };
    let context = Context {
        guest: guest.into(),
        id: "arbiter".into(),
        side,
        state_dir: "/nonexistent".into(),
        config_dir: config_dir.into(),
        host: Arc::new(Nobody),
    };
    make(config, context)
}

pub(crate) fn arbiter(config: &str, side: Side) -> Box<dyn Arbiter> {
    make(config, "web", Path::new("/nonexistent"), side).unwrap()
}

/// A cluster for plaintext clients, ready for claims.
pub(crate) fn cluster(size: usize) -> Cluster {
    let cluster = Cluster::launch(&(0..size).map(|_| own_ip()).collect::<Vec<_>>(), &[]);
    let mut all = arbiter(&cluster.config(), Side::Primary);
    until(LONG, || all.probe());
    cluster
}

pub(crate) fn session(number: u64) -> SessionId {
    let mut id = [0xab; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

/// Asks again until there is an answer, as the engine does.
pub(crate) fn until<T>(limit: Duration, mut ask: impl FnMut() -> Result<T, PluginError>) -> T {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(e) => assert!(Instant::now() < end, "still no answer: {}", e.chain()),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Which side an answer makes the owner.
pub(crate) fn owner(side: Side, verdict: Verdict) -> Side {
    match verdict {
        Verdict::Won => side,
        Verdict::Lost => side.other(),
        Verdict::Undecided => panic!("etcd decides at once"),
    }
}

/// Who owns the guest, asked by `side` until there is an answer.
pub(crate) fn ask(arbiter: &mut Box<dyn Arbiter>, number: u64, side: Side) -> Side {
    owner(side, until(LONG, || arbiter.claim(session(number), side)))
}
