//! A bench for the arbiter, in any form: a file on each host, and a person.

use aventine_api::{Arbiter, Factory, Kind, SessionId, Side};
use aventine_conformance::arbiter::ArbiterBench;
use aventine_conformance::form::{Ears, Form, context};
use std::fs;
use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const SIDES: [Side; 2] = [Side::Primary, Side::Standby];

pub(crate) struct Person<F> {
    dir: TempDir,
    form: PhantomData<F>,
}

impl<F: Form> ArbiterBench for Person<F> {
    fn start() -> Self {
        Person { dir: tempfile::tempdir().unwrap(), form: PhantomData }
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        let Factory::Arbiter(make) = F::entry(Kind::Arbiter, "manual").factory else { panic!("an arbiter") };
        let context = context(Kind::Arbiter, Path::new(place), side, Arc::new(Ears::default()));
        make(&format!("decision = '{}'", side.name()), context).unwrap()
    }

    /// What is at the file's place cannot be read.
    fn vanish(&mut self) {
        for file in SIDES.map(|side| self.dir.path().join(side.name())) {
            if file.exists() {
                fs::rename(&file, file.with_extension("away")).unwrap();
            }
            fs::create_dir(file).unwrap();
        }
    }

    fn reappear(&mut self) {
        for file in SIDES.map(|side| self.dir.path().join(side.name())) {
            fs::remove_dir(&file).unwrap();
            let away = file.with_extension("away");
            if away.exists() {
                fs::rename(away, file).unwrap();
            }
        }
    }

    fn decide(&self, session: SessionId, owner: Side) {
        for file in SIDES.map(|side| self.dir.path().join(side.name())) {
            let mut file = File::options().create(true).append(true).open(file).unwrap();
            file.write_all(format!("{session} {}\n", owner.name()).as_bytes()).unwrap();
        }
    }
}
