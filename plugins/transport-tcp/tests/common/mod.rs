//! What the tests of this crate share. Each test program says in its `TLS` whether links are encrypted.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use aventine_api::{
    ChannelRx, ChannelTx, Context, Epoch, Factory, Host, Kind, Link, Listener, PluginEntry, PluginError,
    Side, Transport,
};
use aventine_transport_tcp as _;
use keys::Keys;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Generous: reaching it is a failure.
pub const LONG: Duration = Duration::from_secs(30);
pub const PORT: u16 = 7400;

#[path = "../../testing/keys.rs"]
pub mod keys;
pub mod log;
pub mod proxy;

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

/// A loopback address that no other test and no other process of these tests uses: ports need no luck.
pub fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + NEXT.fetch_add(1, Ordering::SeqCst), high, low)
}

/// A port that no other test uses, for where there is one address only, and that no connection gets for its own end: those are
/// from 32768 on (`net.ipv4.ip_local_port_range`). `offset`: below 10.
pub fn own_port(offset: u32) -> u32 {
    10_000 + std::process::id() % 1000 * 20 + u32::from(crate::TLS) * 10 + offset
}

/// Makes the plugin as the engine does.
pub fn try_transport(config: &str, side: Side) -> Result<Box<dyn Transport>, PluginError> {
    let entry = aventine_api::inventory::iter::<PluginEntry>
        .into_iter()
        .find(|e| e.name == "tcp" && e.factory.kind() == Kind::Transport)
        .expect("the plugin is registered");
    (entry.validate)(config).unwrap();
    let Factory::Transport(make) = entry.factory else { panic!("not a transport") };
    let context = Context {
        guest: "web".into(),
        id: "transport".into(),
        side,
        state_dir: "/nonexistent".into(),
        config_dir: "/nonexistent".into(),
        host: Arc::new(Nobody),
    };
    make(config, context)
}

pub fn transport(config: &str, side: Side) -> Box<dyn Transport> {
    try_transport(config, side).unwrap()
}

/// The key that says how the link is secured.
pub fn security() -> &'static str {
    static KEYS: OnceLock<(Keys, String)> = OnceLock::new();
    if !crate::TLS {
        return "unsafe_plaintext = true";
    }
    let keys = KEYS.get_or_init(|| {
        let keys = Keys::new();
        let tls = keys.node("node", |_| {});
        (keys, tls)
    });
    &keys.1
}

pub fn config(ip: Ipv4Addr) -> String {
    config_with(ip, security())
}

pub fn config_with(ip: Ipv4Addr, security: &str) -> String {
    format!("listen = '{ip}:{PORT}'\npeer = '{ip}:{PORT}'\n{security}")
}

pub fn listen(ip: Ipv4Addr, routes: &[String]) -> Box<dyn Listener> {
    transport(&config(ip), Side::Standby).listen(routes).unwrap()
}

pub fn connect(ip: Ipv4Addr) -> Box<dyn Link> {
    transport(&config(ip), Side::Primary).connect(LONG).unwrap()
}

/// A listener and a link seen from both sides.
pub struct Pair {
    pub listener: Box<dyn Listener>,
    pub primary: Box<dyn Link>,
    pub standby: Box<dyn Link>,
}

pub fn pair(ip: Ipv4Addr, routes: &[String]) -> Pair {
    let mut listener = listen(ip, routes);
    let primary = connect(ip);
    let standby = listener.accept(LONG).unwrap().expect("the primary is connected");
    Pair { listener, primary, standby }
}

pub type Ends = (Box<dyn ChannelTx>, Box<dyn ChannelRx>);

pub fn open(pair: &mut Pair, name: &str, route: Option<&str>) -> (Ends, Ends) {
    let primary = pair.primary.open(name, route, LONG).unwrap();
    (primary, pair.standby.open(name, route, LONG).unwrap())
}

pub fn recv_vec(rx: &mut Box<dyn ChannelRx>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rx.recv(&mut bytes).unwrap();
    bytes
}

pub fn fail<T>(result: Result<T, PluginError>) -> PluginError {
    result.err().expect("this cannot work")
}
