//! A hypervisor and its guest's virtio-blk driver: memory in a file, one queue in it, and the vhost-user messages.
//!
//! ```text
//! 0  descriptors   0x2000  available   0x3000  used   0x4000  headers   0x5000  statuses   0x100000  data: 1 MiB for each request
//! ```
//! Each request that may be under way has descriptors, a header, a status and data of its own; in them only the place changes from
//! one to the next. Both sides are told of something new only where they wait for it (`VIRTIO_F_EVENT_IDX`), as with Linux's driver.

use super::client::{ClientError, Load, PATIENCE, Places};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Most requests under way, and descriptors of each.
const SLOTS: u16 = 32;
const PARTS: u16 = 8;
const ENTRIES: u16 = SLOTS * PARTS;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x4000;
const STATUSES: u64 = 0x5000;
const DATA: u64 = 0x10_0000;
/// Data of a request, and of one descriptor.
const MOST: u64 = 1 << 20;
const SEGMENT: u32 = 256 << 10;
const HEADER: u64 = 16;
/// Where each side says from which request or answer on it wants to be told: behind its ring.
const USED_EVENT: u64 = AVAILABLE + 4 + 2 * ENTRIES as u64;
const AVAILABLE_EVENT: u64 = USED + 4 + 8 * ENTRIES as u64;

const READ: u32 = 0;
const WRITE: u32 = 1;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const UNANSWERED: u8 = 0xff;

/// Longest segment, flush, event index, version 1, and the messages for more.
const WANTED: u64 = 1 << 1 | 1 << 9 | 1 << 29 | 1 << 32 | 1 << 30;

/// A connection.
pub(super) struct Client {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    /// Waits for `call`.
    wait: Epoll,
    places: Places,
    /// Requests and answers so far, as the rings count them.
    sent: u16,
    seen: u16,
    /// Slots that are not under way.
    free: Vec<u16>,
}

impl Client {
    pub(super) fn connect(socket: &Path, size: u64) -> Result<Client, ClientError> {
        let len = DATA + u64::from(SLOTS) * MOST;
        let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
        ftruncate(&file, len).map_err(io::Error::from)?;
        let part = Some(FileOffset::new(file, 0));
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len as usize, part)])?;
        let (kick, call, wait) = (EventFd::new(0)?, EventFd::new(0)?, Epoll::new()?);
        wait.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        let frontend = Frontend::connect(socket, 1)?;
        let (places, free) = (Places::of(size), (0..SLOTS).collect());
        let mut client = Client { frontend, memory, kick, call, wait, places, sent: 0, seen: 0, free };
        client.agree(size)?;
        client.start()?;
        Ok(client)
    }

    fn agree(&mut self, size: u64) -> Result<(), ClientError> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        if offered & WANTED != WANTED {
            return Err(ClientError::Features(offered, WANTED));
        }
        frontend.get_protocol_features()?;
        let protocol = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(WANTED)?;
        let (_, config) = frontend.get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12])?;
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.iter_mut().zip(config.iter().skip(at)).for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(bytes)
        };
        let bytes = (u64::from(word(0)) | u64::from(word(4)) << 32).saturating_mul(512);
        if bytes < size {
            return Err(ClientError::Size(bytes, size));
        }
        if word(8) < SEGMENT { Err(ClientError::Segment(word(8), SEGMENT)) } else { Ok(()) }
    }

    fn start(&mut self) -> Result<(), ClientError> {
        let Client { frontend, memory, kick, call, .. } = self;
        for region in memory.iter() {
            frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region)?])?;
        }
        let at =
            |address| Ok::<_, ClientError>(memory.get_host_address(GuestAddress(address))?.addr() as u64);
        let places = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: at(0)?,
            used_ring_addr: at(USED)?,
            avail_ring_addr: at(AVAILABLE)?,
            log_addr: None,
        };
        frontend.set_vring_num(0, ENTRIES)?;
        frontend.set_vring_addr(0, &places)?;
        frontend.set_vring_base(0, 0)?;
        frontend.set_vring_call(0, call)?;
        frontend.set_vring_kick(0, kick)?;
        Ok(frontend.set_vring_enable(0, true)?)
    }

    fn poke(&self, at: u64, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(self.memory.write_slice(bytes, GuestAddress(at))?)
    }

    fn store(&self, at: u64, value: u16) -> Result<(), ClientError> {
        Ok(self.memory.store(value.to_le(), GuestAddress(at), Ordering::Release)?)
    }

    fn load(&self, at: u64) -> Result<u16, ClientError> {
        Ok(u16::from_le(self.memory.load(GuestAddress(at), Ordering::Acquire)?))
    }

    /// Sends requests for `time`, or at least `least` of them; answers how many, all of them answered.
    pub(super) fn run(&mut self, load: Load, time: Duration, least: u64) -> Result<u64, ClientError> {
        for slot in 0..SLOTS {
            self.describe(slot, load)?;
        }
        let (began, mut sent, mut answered) = (Instant::now(), 0, 0);
        loop {
            // Asked once: time may run out between two looks at it.
            let more = sent < least || began.elapsed() < time;
            let free = if more && sent - answered < load.depth { self.free.pop() } else { None };
            if let Some(slot) = free {
                self.request(slot, load)?;
                sent += 1;
            } else if sent > answered {
                self.await_answers()?;
                answered += self.take_answers()?;
            } else {
                return Ok(answered);
            }
        }
    }

    /// The descriptors of a slot, and the data of a write.
    fn describe(&self, slot: u16, load: Load) -> Result<(), ClientError> {
        let (number, data) = (u64::from(slot), DATA + u64::from(slot) * MOST);
        let flags = if load.write { 0 } else { WRITABLE };
        let mut parts = vec![(HEADERS + number * HEADER, HEADER as usize, 0)];
        let segments = (0..load.block).step_by(SEGMENT as usize);
        parts
            .extend(segments.map(|at| (data + at as u64, load.block.min(at + SEGMENT as usize) - at, flags)));
        parts.push((STATUSES + number, 1, WRITABLE));
        let last = parts.len() as u16 - 1;
        for (n, (address, len, flags)) in (0..).zip(parts) {
            let at = slot * PARTS + n;
            let flags = if n < last { flags | NEXT } else { flags };
            let (address, len) = (address.to_le_bytes(), (len as u32).to_le_bytes());
            let descriptor = [&address[..], &len, &flags.to_le_bytes(), &(at + 1).to_le_bytes()].concat();
            self.poke(u64::from(at) * 16, &descriptor)?;
        }
        let block: Vec<u8> = (0..load.block).map(|i| (i % 251) as u8).collect();
        if load.write { self.poke(data, &block) } else { Ok(()) }
    }

    fn request(&mut self, slot: u16, load: Load) -> Result<(), ClientError> {
        let number = u64::from(slot);
        let (place, other) = self.places.next(load);
        let kind = if load.write { WRITE } else { READ };
        let header = [&kind.to_le_bytes()[..], &[0; 4], &(place / 512).to_le_bytes()].concat();
        self.poke(HEADERS + number * HEADER, &header)?;
        self.poke(STATUSES + number, &[UNANSWERED])?;
        if load.write {
            self.poke(DATA + number * MOST, &other.to_le_bytes())?;
        }
        self.store(AVAILABLE + 4 + u64::from(self.sent % ENTRIES) * 2, slot * PARTS)?;
        self.sent = self.sent.wrapping_add(1);
        self.store(AVAILABLE + 2, self.sent)?;
        fence(Ordering::SeqCst);
        if self.load(AVAILABLE_EVENT)? == self.sent.wrapping_sub(1) {
            self.kick.write(1)?;
        }
        Ok(())
    }

    fn await_answers(&self) -> Result<(), ClientError> {
        while self.load(USED + 2)? == self.seen {
            self.store(USED_EVENT, self.seen)?;
            fence(Ordering::SeqCst);
            if self.load(USED + 2)? != self.seen {
                break;
            }
            match self.wait.wait(PATIENCE.as_millis() as i32, &mut [EpollEvent::default()]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::TimedOut).into()),
                // Perhaps for an answer that was seen without.
                Ok(_) => drop(self.call.read()?),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn take_answers(&mut self) -> Result<u64, ClientError> {
        let (used, mut answers) = (self.load(USED + 2)?, 0);
        while self.seen != used {
            let entry = USED + 4 + u64::from(self.seen % ENTRIES) * 8;
            let head = u32::from_le(self.memory.load(GuestAddress(entry), Ordering::Relaxed)?);
            let slot =
                u16::try_from(head / u32::from(PARTS)).ok().filter(|s| *s < SLOTS && !self.free.contains(s));
            let slot = slot.ok_or(ClientError::Nonsense(head))?;
            let status: u8 = self.memory.load(GuestAddress(STATUSES + u64::from(slot)), Ordering::Relaxed)?;
            if status != 0 {
                return Err(ClientError::Failed(status.into()));
            }
            self.free.push(slot);
            self.seen = self.seen.wrapping_add(1);
            answers += 1;
        }
        Ok(answers)
    }
}
