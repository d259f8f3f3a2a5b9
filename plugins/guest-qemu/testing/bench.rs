//! A bench of guests that count, for the plugin in any form.

#[path = "program.rs"]
pub(crate) mod program;

use aventine_api::{Context, Factory, Guest, Host, PAGE_SIZE, PluginEntry, Side};
use aventine_conformance::guest::{GuestBench, Memory};
use program::{COUNTING, FIRST_COUNTER, boot_disk, command};
use std::marker::PhantomData;
use std::sync::Arc;
use tempfile::TempDir;

/// Where the plugin comes from.
pub(crate) trait Form {
    fn entry() -> &'static PluginEntry;
}

/// A directory with the disk that they boot from.
pub(crate) struct Counting<F> {
    dir: TempDir,
    form: PhantomData<F>,
}

impl<F: Form> GuestBench for Counting<F> {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("boot.img"), boot_disk(&COUNTING)).unwrap();
        Counting { dir, form: PhantomData }
    }

    fn make(&self, side: Side, host: Arc<dyn Host>) -> Box<dyn Guest> {
        let command = command(&["-drive", "file=boot.img,format=raw,if=virtio,readonly=on"]);
        let config = format!("command = {command:?}");
        (F::entry().validate)(&config).unwrap();
        let Factory::Guest(make) = F::entry().factory else { panic!("the plugin is a guest") };
        let context = Context {
            guest: "conformance".into(),
            id: "guest".into(),
            side,
            state_dir: self.dir.path().to_owned(),
            config_dir: self.dir.path().to_owned(),
            host,
        };
        make(&config, context).map_err(|e| e.chain()).unwrap()
    }

    fn progress(memory: &Memory<'_>) -> Option<u64> {
        // The guest puts the number of its boot drive there, first of all; the firmware uses the counters' pages for other
        // things before.
        let mut drive = [0];
        memory.read(0x7c36, &mut drive);
        let mut counter = [0; 4];
        memory.read((FIRST_COUNTER * PAGE_SIZE) as u64, &mut counter);
        let counter = u32::from_le_bytes(counter);
        (drive == [0x80] && counter > 2).then_some(counter.into())
    }

    fn lose(&self, guest: &dyn Guest) {
        let pid = guest.process().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}
