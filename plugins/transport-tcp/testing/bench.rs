//! A bench for the transport, in any form: two hosts at a loopback address of their own.
#![allow(dead_code, reason = "each test program uses a part of it")]

use crate::keys::Keys;
use aventine_api::{Factory, Kind, Side, Transport};
use aventine_conformance::form::{Ears, Form, context};
use aventine_conformance::transport::TransportBench;
use std::io::Write;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// How links are secured.
pub(crate) trait Security: 'static {
    /// The key that says so, and what must outlive the plugin.
    fn key() -> (String, Option<Keys>);
}

pub(crate) struct Plaintext;

impl Security for Plaintext {
    fn key() -> (String, Option<Keys>) {
        ("unsafe_plaintext = true".into(), None)
    }
}

pub(crate) struct Encrypted;

impl Security for Encrypted {
    fn key() -> (String, Option<Keys>) {
        let keys = Keys::new();
        (keys.node("node", |_| {}), Some(keys))
    }
}

pub(crate) struct Hosts<F, S, const STREAMS: u8 = 1> {
    ip: Ipv4Addr,
    config: String,
    strangers: Vec<TcpStream>,
    _keys: Option<Keys>,
    form: PhantomData<(F, S)>,
}

const PORT: u16 = 7400;
const ROUTE_PORT: u16 = 7401;

/// A loopback address that no other test and no other process of these tests uses: ports need no luck.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(128);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::SeqCst), high, low)
}

impl<F: Form, S: Security, const STREAMS: u8> TransportBench for Hosts<F, S, STREAMS> {
    fn start() -> Self {
        let (ip, (security, keys)) = (own_ip(), S::key());
        let config = format!("listen = '{ip}:{PORT}'\npeer = '{ip}:{PORT}'\nstreams = {STREAMS}\n{security}");
        Hosts { ip, config, strangers: Vec::new(), _keys: keys, form: PhantomData }
    }

    fn place(&self) -> String {
        self.config.clone()
    }

    fn make(place: &str, side: Side) -> Box<dyn Transport> {
        let Factory::Transport(make) = F::entry(Kind::Transport, "tcp").factory else {
            panic!("a transport")
        };
        let nowhere = Path::new("/nonexistent");
        make(place, context(Kind::Transport, nowhere, side, Arc::new(Ears::default()))).unwrap()
    }

    fn route(&self) -> Option<String> {
        Some(format!("{}:{ROUTE_PORT}", self.ip))
    }

    fn stranger(&mut self, words: &[u8]) {
        let mut stranger = TcpStream::connect((self.ip, PORT)).unwrap();
        stranger.write_all(words).unwrap();
        self.strangers.push(stranger);
    }
}
