//! A bench for the recorder, in any form.

use aventine_api::{Factory, Kind, Side, Transport};
use aventine_conformance::form::{Ears, Form, context};
use aventine_conformance::recorder::RecorderBench;
use aventine_transport_file::{Entry, Reader};
use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) struct Trace<F> {
    dir: TempDir,
    form: PhantomData<F>,
}

impl<F: Form> RecorderBench for Trace<F> {
    fn start() -> Self {
        Trace { dir: tempfile::tempdir().unwrap(), form: PhantomData }
    }

    fn make(&self) -> Box<dyn Transport> {
        let Factory::Transport(make) = F::entry(Kind::Transport, "file").factory else {
            panic!("a transport")
        };
        let context = context(Kind::Transport, self.dir.path(), Side::Primary, Arc::new(Ears::default()));
        make("path = 'a.trace'", context).unwrap()
    }

    fn recorded(&self) -> Vec<(String, Vec<u8>)> {
        let mut reader = Reader::new(File::open(self.dir.path().join("a.trace")).unwrap()).unwrap();
        let mut recorded = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            match entry {
                Entry::Channel { number, name } => {
                    assert_eq!(usize::from(number), recorded.len());
                    recorded.push((name, Vec::new()));
                }
                Entry::Bytes { channel, bytes, .. } => recorded[usize::from(channel)].1.extend(bytes),
            }
        }
        recorded
    }
}
