//! A guest that fits into a boot sector, and the helpers to run it under the plugin as the engine would.

use crate::bench::program::{self, COUNTING};
use aventine_api::{
    Attachments, Context, Factory, Guest, GuestEvent, Host, PAGE_SIZE, PageBitmap, PluginEntry, PluginError,
    Region, Side, inventory,
};
use aventine_guest_qemu as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `mov al, 6; mov dx, 0xcf9; out dx, al; hlt`: a reset of the machine.
const REBOOTING: [u8; 7] = [0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4];
/// `mov ax, 0x2000; mov dx, 0x604; out dx, ax; hlt`: ACPI's power off on QEMU's default machine.
const SHUTTING_DOWN: [u8; 8] = [0xb8, 0x00, 0x20, 0xba, 0x04, 0x06, 0xef, 0xf4];

pub(crate) use crate::bench::program::{FIRST_COUNTER, command};

/// Pages that the counting guest increments, from `FIRST_COUNTER` on.
pub(crate) const COUNTERS: usize = 128;
/// Where it reads sectors 0 to 7 of its disk, one a round.
pub(crate) const BUFFER: usize = 0x90;

/// What the guest does.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    Count,
    Reboot,
    ShutDown,
}

/// A disk that boots `program`.
pub(crate) fn boot_disk(program: Program) -> Vec<u8> {
    program::boot_disk(match program {
        Program::Count => &COUNTING,
        Program::Reboot => &REBOOTING,
        Program::ShutDown => &SHUTTING_DOWN,
    })
}

struct Silent;

impl Host for Silent {
    fn request_epoch(&self) {}
    fn staged(&self, _epoch: aventine_api::Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

/// A guest and the directory it lives in.
pub(crate) struct Lab {
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) dir: TempDir,
}

impl std::ops::Deref for Lab {
    type Target = dyn Guest;
    fn deref(&self) -> &(dyn Guest + 'static) {
        &*self.guest
    }
}

impl std::ops::DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut (dyn Guest + 'static) {
        &mut *self.guest
    }
}

pub(crate) fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>().find(|e| e.name == "qemu").expect("the plugin is registered")
}

/// The guest of `command`, not started, in a directory of its own.
pub(crate) fn new_guest(side: Side, command: &[String]) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let guest = make_guest(side, &format!("command = {command:?}"), dir.path());
    Lab { guest, dir }
}

/// The guest of a configuration, not started.
pub(crate) fn make_guest(side: Side, config: &str, dir: &Path) -> Box<dyn Guest> {
    (entry().validate)(config).unwrap();
    let context = Context {
        guest: "test".into(),
        id: "guest".into(),
        side,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host: Arc::new(Silent),
    };
    let Factory::Guest(make) = entry().factory else { panic!("the plugin is a guest") };
    make(config, context).map_err(|e| e.chain()).unwrap()
}

/// A machine booting `program` from a read-only disk.
pub(crate) fn boot(side: Side, program: Program) -> Lab {
    let disk = "file=boot.img,format=raw,if=virtio,readonly=on";
    let mut lab = new_guest(side, &command(&["-drive", disk]));
    std::fs::write(lab.dir.path().join("boot.img"), boot_disk(program)).unwrap();
    ok(lab.start(&Attachments::default()));
    lab
}

#[track_caller]
pub(crate) fn ok<T>(answer: Result<T, PluginError>) -> T {
    match answer {
        Ok(value) => value,
        Err(error) => panic!("{}", error.chain()),
    }
}

/// Looks again and again until `ready`, or fails.
#[track_caller]
pub(crate) fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(120);
    while !ready() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Polls until something happened.
#[track_caller]
pub(crate) fn next_event(guest: &mut dyn Guest) -> GuestEvent {
    let mut event = None;
    until("an event", || {
        event = ok(guest.poll());
        event.is_some()
    });
    event.unwrap()
}

pub(crate) fn region(guest: &dyn Guest) -> Region {
    match guest.regions()[..] {
        [region] => region,
        ref other => panic!("{other:?}"),
    }
}

/// A counter of the counting guest.
pub(crate) fn counter(guest: &dyn Guest, page: usize) -> u32 {
    let at = (FIRST_COUNTER + page) * PAGE_SIZE;
    // SAFETY: inside the region, aligned; the guest may write it meanwhile, hence volatile.
    unsafe { region(guest).host.as_ptr().add(at).cast::<u32>().read_volatile() }
}

/// Waits until the counting guest is past the firmware, which uses the same memory for other things before.
#[track_caller]
pub(crate) fn until_counting(guest: &dyn Guest) {
    // SAFETY: inside the region. The guest puts the number of its boot drive there, first of all.
    let drive = || unsafe { region(guest).host.as_ptr().add(0x7c36).read_volatile() };
    until("the guest counts", || drive() == 0x80 && counter(guest, 0) > 2);
}

/// Copies pages of the guest's memory to their place in `image`.
pub(crate) fn copy_pages(guest: &dyn Guest, dirty: &PageBitmap, image: &mut [u8]) {
    let host = region(guest).host.as_ptr();
    for (first, count) in dirty.runs() {
        let (at, length) = (first as usize * PAGE_SIZE, count as usize * PAGE_SIZE);
        // SAFETY: inside the region. Where the guest runs the copy may be torn, and is then made again.
        unsafe { std::ptr::copy_nonoverlapping(host.add(at), image[at..at + length].as_mut_ptr(), length) };
    }
}

/// All of the guest's memory. The guest must be paused.
pub(crate) fn memory(guest: &dyn Guest) -> &[u8] {
    let region = region(guest);
    // SAFETY: inside the region, and nothing writes it while the guest is paused.
    unsafe { std::slice::from_raw_parts(region.host.as_ptr(), region.pages as usize * PAGE_SIZE) }
}

/// The first page in which two images differ.
pub(crate) fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.chunks(PAGE_SIZE).zip(b.chunks(PAGE_SIZE)).position(|(a, b)| a != b)
}

/// A replica as a standby would keep it.
pub(crate) struct Replica {
    pub(crate) image: Vec<u8>,
    pub(crate) state: Vec<u8>,
    pub(crate) dirty: PageBitmap,
}

impl Replica {
    pub(crate) fn new(guest: &dyn Guest) -> Replica {
        let pages = region(guest).pages;
        let image = vec![0; pages as usize * PAGE_SIZE];
        Replica { image, state: Vec::new(), dirty: PageBitmap::new(pages) }
    }

    /// Copies everything that is not zero, guest paused or running.
    pub(crate) fn copy_all(&mut self, guest: &mut dyn Guest) {
        self.dirty.clear();
        ok(guest.dirty(&mut self.dirty));
        ok(guest.populated(&mut self.dirty));
        copy_pages(guest, &self.dirty, &mut self.image);
    }

    /// Copies what is dirty now, guest paused or running; answers how many pages.
    pub(crate) fn copy(&mut self, guest: &mut dyn Guest) -> u64 {
        self.dirty.clear();
        ok(guest.dirty(&mut self.dirty));
        copy_pages(guest, &self.dirty, &mut self.image);
        self.dirty.count()
    }

    /// One epoch; the guest is left paused.
    pub(crate) fn checkpoint(&mut self, guest: &mut dyn Guest) -> u64 {
        ok(guest.pause());
        ok(guest.start_state());
        let pages = self.copy(guest);
        ok(guest.finish_state(&mut self.state));
        pages
    }
}

pub(crate) fn kill_process(guest: &dyn Guest) {
    let pid = guest.process().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
