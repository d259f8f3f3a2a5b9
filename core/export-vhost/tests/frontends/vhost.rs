//! A hypervisor and its guest's virtio-blk driver: memory in a file, a queue in it, and the vhost-user messages.
//!
//! ```text
//! 0  descriptors   0x2000  available   0x3000  used   0x4000  header   0x5000  status   0x100000  data, to the end
//! ```

use crate::device::Memory;
use crate::{Client, Durable, Refused, Verb};
use aventine_api::PageBitmap;
use aventine_export_vhost::{FileId, Part, VhostExport, VhostExportError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::path::Path;
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::VringConfigData;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const RAM: usize = 48 << 20;
const ENTRIES: u16 = 256;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x10_0000;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
/// Most data segments that a request has, as the device says.
const SEGMENTS: usize = 126;

const FLUSH: u64 = 1 << 9;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Sizes, block size, queues, discard and write zeroes.
const WANTED: u64 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 12 | 1 << 13 | 1 << 14 | VERSION_1 | PROTOCOL_FEATURES;

pub(crate) struct Driver {
    frontend: Frontend,
    file: File,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    sent: u16,
}

impl Driver {
    pub(crate) fn connect(socket: &Path, durable: Durable) -> Driver {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, RAM as u64).unwrap();
        let part = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), RAM, Some(part))]).unwrap();
        let frontend = Frontend::connect(socket, 1).unwrap();
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        let mut driver = Driver { frontend, file, memory, kick, call, sent: 0 };
        driver.set_up(if durable == Durable::Yes { WANTED } else { WANTED | FLUSH });
        driver
    }

    fn set_up(&mut self, features: u64) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        assert_eq!(
            frontend.get_features().unwrap() & (features | FLUSH),
            features | FLUSH,
            "all are offered"
        );
        let protocol = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(frontend.get_protocol_features().unwrap().contains(protocol));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features).unwrap();
        self.give_memory();
        self.start(0);
    }

    fn give_memory(&self) {
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// Starts the queue with what follows the first `base` requests.
    fn start(&mut self, base: u16) {
        let at = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        let places = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: at(0),
            used_ring_addr: at(USED),
            avail_ring_addr: at(AVAILABLE),
            log_addr: None,
        };
        self.frontend.set_vring_num(0, ENTRIES).unwrap();
        self.frontend.set_vring_addr(0, &places).unwrap();
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    fn config(&mut self, at: u32, len: u32) -> Vec<u8> {
        let room = vec![0; len as usize];
        self.frontend.get_config(at, len, VhostUserConfigFlags::empty(), &room).unwrap().1
    }

    fn poke(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Puts a request into the queue: `out` for the device, or `room` for its answer.
    fn place(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) {
        self.poke(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.poke(DATA, out);
        self.poke(STATUS, &[0xff]);
        let len = room.max(out.len());
        let most = u32::from_le_bytes(self.config(8, 4).try_into().unwrap()) as usize;
        // Only what is too large anyway has larger segments than the device says.
        let most = most.max(len.div_ceil(SEGMENTS));
        let mut parts = vec![(HEADER, 16, 0)];
        let flags = if room > 0 { WRITABLE } else { 0 };
        parts.extend((0..len).step_by(most).map(|at| (DATA + at as u64, most.min(len - at), flags)));
        parts.push((STATUS, 1, WRITABLE));
        let last = parts.len() - 1;
        for (at, (address, len, flags)) in parts.into_iter().enumerate() {
            let flags = if at < last { flags | NEXT } else { flags };
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend((len as u32).to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((at as u16 + 1).to_le_bytes());
            self.poke(at as u64 * 16, &descriptor);
        }
        self.poke(AVAILABLE + 4 + u64::from(self.sent % ENTRIES) * 2, &0_u16.to_le_bytes());
        self.sent = self.sent.wrapping_add(1);
        self.poke(AVAILABLE + 2, &self.sent.to_le_bytes());
    }

    fn answered(&self) -> u16 {
        u16::from_le_bytes(self.peek(USED + 2, 2).try_into().unwrap())
    }

    /// The status of a request.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) -> u8 {
        self.place(kind, sector, out, room);
        self.kick.write(1).unwrap();
        self.await_answers();
        self.peek(STATUS, 1)[0]
    }

    /// A call may be of an answer that was seen without it.
    fn await_answers(&self) {
        while self.answered() != self.sent {
            self.call.read().unwrap();
        }
    }
}

fn segment(at: u64, len: u64, flags: u32) -> Vec<u8> {
    let sectors = u32::try_from(len / 512).unwrap();
    [&(at / 512).to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Client for Driver {
    fn ask(&mut self, verb: Verb<'_>) -> Result<Vec<u8>, Refused> {
        let (status, room) = match verb {
            Verb::Read { at, len } => (self.request(0, at / 512, b"", len), len),
            Verb::Write { at, data } => (self.request(1, at / 512, data, 0), 0),
            Verb::Flush => (self.request(4, 0, b"", 0), 0),
            Verb::Discard { at, len } => (self.request(11, 0, &segment(at, len, 0), 0), 0),
            Verb::Zeroes { at, len, may_unmap } => {
                (self.request(13, 0, &segment(at, len, may_unmap.into()), 0), 0)
            }
        };
        match status {
            0 => Ok(self.peek(DATA, room)),
            1 => Err(Refused),
            other => panic!("{verb:?} ended with {other}"),
        }
    }
}

fn served(size: usize) -> (tempfile::TempDir, VhostExport, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let export = VhostExport::start(&dir.path().join("s"), Memory::new(size), 512).unwrap();
    let driver = Driver::connect(export.socket(), Durable::No);
    (dir, export, driver)
}

#[test]
fn the_pages_that_a_request_writes_are_named_once() {
    let (_dir, export, mut driver) = served(1 << 20);
    let first_page = 1000;
    let ram = [Part { file: FileId::of(&driver.file).unwrap(), first_page, pages: RAM as u64 / 4096 }];
    let named = |export: &VhostExport| {
        let mut pages = PageBitmap::new(first_page + RAM as u64 / 4096);
        export.take_written(&ram, &mut pages).unwrap();
        (0..pages.pages()).filter(|&page| pages.contains(page)).collect::<Vec<_>>()
    };
    driver.ask(Verb::Write { at: 0, data: &[1; 8192] }).unwrap();
    let answer = [USED, STATUS].map(|at| first_page + at / 4096);
    assert_eq!(named(&export), answer, "a write answers, no more");
    driver.ask(Verb::Read { at: 512, len: 8192 }).unwrap();
    let data = [0, 1].map(|page| first_page + DATA / 4096 + page);
    assert_eq!(named(&export), [&answer[..], &data].concat());
    assert!(named(&export).is_empty(), "and not again");

    // What was written before a new table of memory is still known after it.
    driver.ask(Verb::Flush).unwrap();
    driver.give_memory();
    assert_eq!(named(&export), answer);
    // Memory that is not the guest's RAM has nobody to copy it.
    driver.ask(Verb::Flush).unwrap();
    let error = export.take_written(&[], &mut PageBitmap::new(1)).unwrap_err();
    assert!(error.to_string().contains("2 pages"), "{error}");
}

#[test]
fn what_a_stop_leaves_in_the_queue_is_carried_out_by_who_goes_on() {
    let (_dir, _export, mut driver) = served(1 << 20);
    driver.ask(Verb::Write { at: 0, data: &[3; 512] }).unwrap();
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 1);
    driver.place(0, 0, b"", 512);
    driver.kick.write(1).unwrap();
    // Stopped: a message that is answered after it finds the request where it was.
    driver.config(0, 8);
    assert_eq!((driver.answered(), driver.peek(STATUS, 1)[0]), (1, 0xff));
    driver.start(1);
    driver.await_answers();
    assert_eq!(driver.peek(STATUS, 1)[0], 0);
    assert_eq!(driver.peek(DATA, 512), [3; 512]);
}

#[test]
fn the_configuration_space_is_told_and_cannot_be_written() {
    let (_dir, _export, mut driver) = served(1 << 20);
    assert_eq!(driver.config(0, 8), (2048_u64).to_le_bytes(), "sectors");
    assert_eq!(driver.config(20, 4), 512_u32.to_le_bytes(), "bytes of a block");
    assert_eq!(driver.config(44, 4), 1_u32.to_le_bytes(), "sectors of a block, of which discards are");
    let before = driver.config(0, 60);
    // A guest can do so through QEMU: it is not to lose its disk by it.
    for (at, value) in [(0, &[0xff; 8][..]), (32, &[0])] {
        driver.frontend.set_config(at, VhostUserConfigFlags::WRITABLE, value).unwrap();
    }
    assert_eq!(driver.config(0, 60), before);
    driver.ask(Verb::Read { at: 0, len: 1 << 20 }).unwrap();
}

#[test]
fn requests_that_only_this_front_end_has_are_answered() {
    let (_dir, _export, mut driver) = served(1 << 20);
    assert_eq!(driver.request(8, 0, b"", 20), 0);
    assert_eq!(driver.peek(DATA, 9), b"aventine\0");
    for (why, kind, out) in [
        ("unknown", 99, vec![]),
        ("a discard has no flag", 11, segment(0, 512, 1)),
        ("zeroes have one", 13, segment(0, 512, 2)),
        ("no whole segment", 13, vec![0; 15]),
        ("too many segments", 11, segment(0, 512, 0).repeat(33)),
    ] {
        assert_eq!(driver.request(kind, 0, &out, 0), 2, "{why}");
    }
    let both = [segment(0, 512, 1), segment(1024, 512, 0)].concat();
    driver.ask(Verb::Write { at: 0, data: &[5; 2048] }).unwrap();
    assert_eq!(driver.request(13, 0, &both, 0), 0);
    let sectors = driver.ask(Verb::Read { at: 0, len: 2048 }).unwrap();
    assert_eq!([0, 512, 1024, 1536].map(|at| sectors[at]), [0, 5, 0, 5]);
}

#[test]
fn a_hypervisor_that_talks_nonsense_is_followed_by_the_next() {
    let (_dir, export, driver) = served(1 << 20);
    driver.frontend.get_vring_base(0).unwrap();
    // Rings that are nowhere: the guest can ask QEMU for such.
    let places = VringConfigData {
        queue_max_size: ENTRIES,
        queue_size: ENTRIES,
        flags: 0,
        desc_table_addr: 0,
        used_ring_addr: 0,
        avail_ring_addr: 0,
        log_addr: None,
    };
    driver.frontend.set_vring_addr(0, &places).unwrap_err();
    driver.frontend.get_features().unwrap_err();
    let mut next = Driver::connect(export.socket(), Durable::No);
    next.ask(Verb::Flush).unwrap();
}

#[test]
fn a_disk_that_is_not_whole_blocks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (size, block) in [(1000, 512), (4096 + 512, 4096)] {
        let error = VhostExport::start(&dir.path().join("s"), Memory::new(size), block).err().unwrap();
        assert!(matches!(error, VhostExportError::Size { .. }), "{error}");
        assert!(error.to_string().contains("\"nbd\""), "{error}");
    }
    for block in [0, 256, 1000, 8192] {
        let error = VhostExport::start(&dir.path().join("s"), Memory::new(1 << 20), block).err().unwrap();
        assert!(matches!(error, VhostExportError::Block(_)), "{error}");
    }
    assert!(!dir.path().join("s").exists());
}
