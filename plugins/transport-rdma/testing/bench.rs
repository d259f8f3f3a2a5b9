//! A bench for the transport, in any form: both hosts are this one, over its RDMA device.

use crate::keys::Keys;
use aventine_api::{Factory, Kind, Side, Transport};
use aventine_conformance::form::{Ears, Form, context};
use aventine_conformance::transport::TransportBench;
use std::io::Write;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

pub(crate) struct Hosts<F> {
    port: u16,
    config: String,
    strangers: Vec<TcpStream>,
    _keys: Keys,
    form: PhantomData<F>,
}

/// Of a lab host's eth0, which is the device.
pub(crate) const ADDRESS: &str = "10.9.0.10";

impl<F: Form> TransportBench for Hosts<F> {
    fn start() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(7400);
        let (port, keys) = (NEXT.fetch_add(2, Ordering::SeqCst), Keys::new());
        let tls = keys.node("node", |_| {});
        let config = format!(
            "listen = '{ADDRESS}:{port}'\npeer = '{ADDRESS}:{port}'\n{tls}\nunsafe_unencrypted_payload = true"
        );
        Hosts { port, config, strangers: Vec::new(), _keys: keys, form: PhantomData }
    }

    fn place(&self) -> String {
        self.config.clone()
    }

    fn make(place: &str, side: Side) -> Box<dyn Transport> {
        let Factory::Transport(make) = F::entry(Kind::Transport, "rdma").factory else {
            panic!("a transport")
        };
        let nowhere = Path::new("/nonexistent");
        make(place, context(Kind::Transport, nowhere, side, Arc::new(Ears::default()))).unwrap()
    }

    fn route(&self) -> Option<String> {
        Some(format!("{ADDRESS}:{}", self.port + 1))
    }

    fn stranger(&mut self, words: &[u8]) {
        let mut stranger = TcpStream::connect((ADDRESS, self.port)).unwrap();
        stranger.write_all(words).unwrap();
        self.strangers.push(stranger);
    }
}
