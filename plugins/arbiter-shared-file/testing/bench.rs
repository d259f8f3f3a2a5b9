//! A bench for the arbiter, in any form: a directory that both hosts see.

use aventine_api::{Arbiter, Factory, Kind, Side};
use aventine_conformance::arbiter::ArbiterBench;
use aventine_conformance::form::{Ears, Form, context};
use std::fs;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) struct Directory<F> {
    dir: TempDir,
    form: PhantomData<F>,
}

impl<F: Form> ArbiterBench for Directory<F> {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        Directory { dir, form: PhantomData }
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        let entry = F::entry(Kind::Arbiter, "shared-file");
        let Factory::Arbiter(make) = entry.factory else { panic!("an arbiter") };
        let context = context(Kind::Arbiter, Path::new(place), side, Arc::new(Ears::default()));
        make("path = 'shared'", context).unwrap()
    }

    /// It is not mounted any more.
    fn vanish(&mut self) {
        fs::rename(self.dir.path().join("shared"), self.dir.path().join("away")).unwrap();
    }

    fn reappear(&mut self) {
        fs::rename(self.dir.path().join("away"), self.dir.path().join("shared")).unwrap();
    }
}
