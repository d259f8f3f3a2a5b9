//! A bench for the codec, in any form.

use aventine_api::{Codec, Factory, Kind, Side};
use aventine_conformance::codec::CodecBench;
use aventine_conformance::form::{Ears, Form, context};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Raw<F>(PhantomData<F>);

impl<F: Form> CodecBench for Raw<F> {
    fn make() -> Box<dyn Codec> {
        let Factory::Codec(make) = F::entry(Kind::Codec, "raw").factory else { panic!("a codec") };
        let nowhere = Path::new("/nonexistent");
        make("", context(Kind::Codec, nowhere, Side::Primary, Arc::new(Ears::default()))).unwrap()
    }
}
