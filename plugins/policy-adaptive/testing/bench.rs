//! A bench for the policy, in any form.

use aventine_api::{EpochPolicy, Factory, Host, Kind, Side};
use aventine_conformance::form::{Form, context};
use aventine_conformance::policy::PolicyBench;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Adaptive<F>(PhantomData<F>);

impl<F: Form> PolicyBench for Adaptive<F> {
    fn make(host: Arc<dyn Host>) -> Box<dyn EpochPolicy> {
        let Factory::Policy(make) = F::entry(Kind::Policy, "adaptive").factory else { panic!("a policy") };
        make("shortest = '5ms'", context(Kind::Policy, Path::new("/nonexistent"), Side::Primary, host))
            .unwrap()
    }
}
