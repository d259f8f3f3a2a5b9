//! A bench for the arbiter, in any form: a real etcd.

use crate::cluster::{Cluster, own_ip};
use aventine_api::{Arbiter, Factory, Kind, Side};
use aventine_conformance::arbiter::ArbiterBench;
use aventine_conformance::form::{Ears, Form, context};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Etcd<F> {
    cluster: Cluster,
    form: PhantomData<F>,
}

impl<F: Form> ArbiterBench for Etcd<F> {
    fn start() -> Self {
        let etcd = Etcd { cluster: Cluster::launch(&[own_ip()], &[]), form: PhantomData };
        let mut claimant = Self::claimant(&etcd.place(), Side::Primary);
        let end = Instant::now() + Self::PATIENCE;
        while let Err(e) = claimant.probe() {
            assert!(Instant::now() < end, "etcd does not answer: {}", e.chain());
            thread::sleep(Duration::from_millis(5));
        }
        etcd
    }

    fn place(&self) -> String {
        format!("unsafe_plaintext = true\n{}", self.cluster.config())
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        let Factory::Arbiter(make) = F::entry(Kind::Arbiter, "etcd").factory else { panic!("an arbiter") };
        let nowhere = Path::new("/nonexistent");
        make(place, context(Kind::Arbiter, nowhere, side, Arc::new(Ears::default()))).unwrap()
    }

    fn vanish(&mut self) {
        self.cluster.members[0].kill();
    }

    fn reappear(&mut self) {
        self.cluster.members[0].start();
    }
}
