//! A bench for the arbiter, in any form: a program that keeps its contract with a directory.

use aventine_api::{Arbiter, Factory, Kind, Side};
use aventine_conformance::arbiter::ArbiterBench;
use aventine_conformance::form::{Ears, Form, context};
use std::fs;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// The first to make a file wins.
const FIRST_WINS: &str = "
    cd service || exit 70
    [ \"$AVENTINE_ACTION\" = probe ] && exit 0
    echo \"$AVENTINE_SIDE\" >\"made.$$\" && ln \"made.$$\" \"$AVENTINE_SESSION\" 2>/dev/null
    rm -f \"made.$$\"
    case \"$(cat \"$AVENTINE_SESSION\")\" in
    \"$AVENTINE_SIDE\") exit 0 ;;
    \"$AVENTINE_OTHER_SIDE\") exit 10 ;;
    esac
    exit 70";

pub(crate) struct Program<F> {
    dir: TempDir,
    form: PhantomData<F>,
}

impl<F: Form> ArbiterBench for Program<F> {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("service")).unwrap();
        fs::write(dir.path().join("script"), FIRST_WINS).unwrap();
        Program { dir, form: PhantomData }
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn claimant(place: &str, side: Side) -> Box<dyn Arbiter> {
        let Factory::Arbiter(make) = F::entry(Kind::Arbiter, "command").factory else { panic!("an arbiter") };
        let context = context(Kind::Arbiter, Path::new(place), side, Arc::new(Ears::default()));
        // A shell reads the script, so that no test executes a file that another one's child still has open.
        make("command = ['/bin/sh', 'script']\ntimeout = '60s'", context).unwrap()
    }

    fn vanish(&mut self) {
        fs::rename(self.dir.path().join("service"), self.dir.path().join("away")).unwrap();
    }

    fn reappear(&mut self) {
        fs::rename(self.dir.path().join("away"), self.dir.path().join("service")).unwrap();
    }
}
