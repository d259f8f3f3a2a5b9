//! Fuzz targets; see `tests/fuzz`. The tests of queues that no driver makes are here, too: they use the same guest.

#[path = "../../export/src/fuzz/ram.rs"]
mod ram;

use crate::backend::{Backend, Left};
use crate::memory::{Memory, Written};
use aventine_api::{BlockDevice, PAGE_SIZE};
use ram::Ram;
use std::sync::Arc;
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of the guest's memory, and of its disk.
const RAM: usize = 64 << 10;
const SIZE: usize = 16 << 10;
/// Where a queue of [`ENTRIES`] is: descriptors from 0 on, then the two rings.
const ENTRIES: u16 = 16;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;

/// A guest's memory with a queue in it, and the device at its other end.
struct Machine {
    memory: GuestMemoryAtomic<Memory>,
    queue: VringMutex<GuestMemoryAtomic<Memory>>,
    backend: Backend,
}

impl Machine {
    fn new() -> Machine {
        Machine::with(Arc::new(Ram::new(vec![0xa5; SIZE])))
    }

    fn with(device: Arc<dyn BlockDevice>) -> Machine {
        let memory = Memory::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory can be had");
        let memory = GuestMemoryAtomic::new(memory);
        let backend = Backend::new(device, 512, memory.clone(), Arc::default());
        let queue = VringMutex::new(memory.clone(), 1024).expect("the size is allowed");
        queue.set_queue_size(ENTRIES);
        queue.set_queue_info(0, AVAILABLE, USED).expect("the places are aligned");
        queue.set_queue_ready(true);
        queue.set_enabled(true);
        Machine { memory, queue, backend }
    }

    fn written(&self) -> Written {
        let memory = vm_memory::GuestAddressSpace::memory(&self.memory);
        memory.iter().next().map(GuestMemoryRegion::bitmap).unwrap_or_default()
    }

    fn poke(&self, at: u64, bytes: &[u8]) {
        let memory = vm_memory::GuestAddressSpace::memory(&self.memory);
        memory.write_slice(bytes, GuestAddress(at)).expect("inside");
    }

    fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = vm_memory::GuestAddressSpace::memory(&self.memory);
        memory.read_slice(&mut bytes, GuestAddress(at)).expect("inside");
        bytes
    }

    /// The device looks into its queue. Every page that it changes is written down.
    fn kick(&self) -> Result<Left, virtio_queue::Error> {
        let written = self.written();
        written.forget();
        let before = self.peek(0, RAM);
        let served = self.backend.round(&self.queue);
        let after = self.peek(0, RAM);
        let pages = before.chunks(PAGE_SIZE).zip(after.chunks(PAGE_SIZE)).enumerate();
        for (page, (before, after)) in pages {
            assert!(before == after || written.dirty_at(page * PAGE_SIZE), "page {page} was written unseen");
        }
        served
    }
}

/// The whole memory of a guest: its queue, and whatever its descriptors lead to.
pub fn virtqueue(data: &[u8]) {
    let machine = Machine::new();
    machine.poke(0, &data[..data.len().min(RAM)]);
    // However it ends, it ends.
    let _ = machine.kick();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ROUND;
    use aventine_api::PluginError;
    use aventine_fuzz::replay;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use vhost_user_backend::VhostUserBackend;

    const NEXT: u16 = 1;
    const WRITABLE: u16 = 2;
    const INDIRECT: u16 = 4;
    /// Where a request's parts are.
    const HEADER: u64 = 0x1000;
    const STATUS: u64 = 0x1800;
    const DATA: u64 = 0x2000;

    fn descriptor(address: u64, len: usize, flags: u16, next: u16) -> Vec<u8> {
        let (len, flags, next) = ((len as u32).to_le_bytes(), flags.to_le_bytes(), next.to_le_bytes());
        [&address.to_le_bytes()[..], &len, &flags, &next].concat()
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    impl Machine {
        /// One request with `out` bytes for the device and `room` for its answer, the status apart.
        fn place(&self, number: u16, kind: u32, sector: u64, out: &[u8], room: usize) {
            self.poke(HEADER, &header(kind, sector));
            let (data, flags) = if room > 0 { (room, NEXT | WRITABLE) } else { (out.len(), NEXT) };
            self.poke(DATA, out);
            self.poke(STATUS, &[0xff]);
            let chain = [
                descriptor(HEADER, 16, NEXT, if data > 0 { 1 } else { 2 }),
                descriptor(DATA, data, flags, 2),
                descriptor(STATUS, 1, WRITABLE, 0),
            ];
            self.poke(0, &chain.concat());
            self.poke(AVAILABLE + 4 + u64::from(number % ENTRIES) * 2, &0_u16.to_le_bytes());
            self.poke(AVAILABLE + 2, &(number + 1).to_le_bytes());
        }
    }

    fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn a_queue_that_is_stopped_is_left_alone() {
        let machine = Machine::new();
        machine.place(0, 0, 0, &[], 512);
        machine.queue.set_queue_ready(false);
        let before = machine.peek(0, RAM);
        machine.kick().unwrap();
        assert!(machine.peek(0, RAM) == before, "neither carried out nor looked at");
        machine.queue.set_queue_ready(true);
        machine.kick().unwrap();
        assert_eq!(machine.peek(STATUS, 1), [0], "but once it goes on");
    }

    /// Where a queue of 256 entries has room for its rings, all of whose requests are the one at descriptor 0.
    const LARGE: u16 = 256;
    const LARGE_AVAILABLE: u64 = 0x4000;
    const LARGE_USED: u64 = 0x5000;

    fn full(machine: &Machine) {
        machine.place(0, 0, 0, &[], 512);
        machine.queue.set_queue_size(LARGE);
        machine.queue.set_queue_info(0, LARGE_AVAILABLE, LARGE_USED).unwrap();
        machine.poke(LARGE_AVAILABLE + 2, &LARGE.to_le_bytes());
    }

    fn answered(machine: &Machine) -> u16 {
        u16::from_le_bytes(machine.peek(LARGE_USED + 2, 2).try_into().unwrap())
    }

    #[test]
    fn a_full_queue_is_dealt_with_in_rounds() {
        let machine = Machine::new();
        full(&machine);
        for round in 1..=2 {
            assert_eq!(machine.kick().unwrap(), Left::More);
            assert_eq!(usize::from(answered(&machine)), round * ROUND);
        }
        assert_eq!(machine.kick().unwrap(), Left::Nothing);
        assert_eq!(answered(&machine), LARGE);
    }

    /// Tells when a read has come, and holds it until it is let go.
    struct Gate {
        come: mpsc::Sender<()>,
        go: Mutex<mpsc::Receiver<()>>,
    }

    impl BlockDevice for Gate {
        fn size(&self) -> u64 {
            SIZE as u64
        }

        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), PluginError> {
            self.come.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), PluginError> {
            unreachable!("only reads are asked for")
        }

        fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), PluginError> {
            unreachable!("only reads are asked for")
        }

        fn trim(&self, _: u64, _: u64) -> Result<(), PluginError> {
            unreachable!("only reads are asked for")
        }

        fn flush(&self) -> Result<(), PluginError> {
            unreachable!("only reads are asked for")
        }
    }

    #[test]
    fn a_pause_waits_for_one_request_of_a_full_queue() {
        let (come, came) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let machine = Machine::with(Arc::new(Gate { come, go: Mutex::new(gone) }));
        full(&machine);
        thread::scope(|scope| {
            let worker = scope.spawn(|| machine.backend.round(&machine.queue).unwrap());
            came.recv().unwrap();
            // As the library does it when QEMU stops a queue. The first step waits for nothing.
            machine.queue.set_queue_ready(false);
            let stop = scope.spawn(|| {
                machine.backend.stop_vring(0).unwrap();
                (answered(&machine), machine.queue.queue_next_avail())
            });
            go.send(()).unwrap();
            assert_eq!(
                stop.join().unwrap(),
                (1, 1),
                "the one is answered, and the next is for whoever goes on"
            );
            assert_eq!(worker.join().unwrap(), Left::Nothing);
        });
        assert!(came.try_recv().is_err(), "no other request reached the device");
    }

    /// The worker looks into its queue all the time, and each stop comes at another moment.
    #[test]
    fn a_paused_guests_memory_stays_as_it_is() {
        let machine = Machine::new();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    machine.backend.round(&machine.queue).unwrap();
                }
            });
            let stop = || {
                machine.queue.set_queue_ready(false);
                machine.backend.stop_vring(0).unwrap();
                let before = machine.peek(USED, 4);
                thread::yield_now();
                let changed = machine.peek(USED, 4) != before;
                machine.queue.set_queue_ready(true);
                changed
            };
            let changed = (0..20_000).filter(|_| stop()).count();
            over.store(true, Ordering::Relaxed);
            assert_eq!(changed, 0, "stops after which the ring was written");
        });
    }

    /// A read whose chain is `chain`; the table for an indirect one is behind the status.
    fn read_by(chain: &[u8]) -> Machine {
        let machine = Machine::new();
        machine.place(0, 0, 0, &[], 512);
        machine.poke(0, chain);
        machine
    }

    #[test]
    fn a_chain_without_an_end_or_outside_memory_is_left_alone() {
        let first = descriptor(HEADER, 16, NEXT, 1);
        let data = |next| descriptor(DATA, 512, WRITABLE | NEXT, next);
        let status = descriptor(STATUS, 1, WRITABLE, 0);
        let cases = [
            (
                "round in a circle",
                [&first[..], &data(2), &descriptor(STATUS, 1, WRITABLE | NEXT, 0)].concat(),
            ),
            ("to itself", [&first[..], &data(1)].concat()),
            ("to a descriptor that is none", [&first[..], &data(ENTRIES)].concat()),
            (
                "beyond memory",
                [&first[..], &descriptor(RAM as u64 - 1, 512, WRITABLE | NEXT, 2), &status].concat(),
            ),
            (
                "more than there is",
                [&first[..], &descriptor(DATA, RAM, WRITABLE | NEXT, 2), &status].concat(),
            ),
            (
                "4 GiB twice",
                [0, 1].map(|at| descriptor(DATA, u32::MAX as usize, WRITABLE | NEXT, at + 1)).concat(),
            ),
            ("a table of odd size", descriptor(0, 47, INDIRECT, 0)),
            ("a table in a table", descriptor(0, 48, INDIRECT, 0)),
            ("a huge table that never ends", descriptor(0x3000, 0xffff * 16, INDIRECT, 0)),
            ("a table larger than any", descriptor(0x3000, u32::MAX as usize & !15, INDIRECT, 0)),
        ];
        for (what, chain) in cases {
            let machine = read_by(&chain);
            // Every descriptor of it is followed by the first.
            machine.poke(0x3000, &descriptor(DATA, 1, WRITABLE | NEXT, 0));
            let before = machine.peek(DATA, 512);
            machine.kick().unwrap();
            assert_eq!(machine.peek(USED + 2, 2), 1_u16.to_le_bytes(), "{what}: its place is free again");
            assert_eq!(machine.peek(USED + 8, 4), [0; 4], "{what}: with nothing written");
            assert_eq!((machine.peek(STATUS, 1), machine.peek(DATA, 512)), (vec![0xff], before), "{what}");
        }
    }

    #[test]
    fn any_guest_is_answered_or_left_alone() {
        let seed = |kind: u32, out: &[u8], room: usize| {
            let machine = Machine::new();
            machine.place(0, kind, 1, out, room);
            machine.peek(0, 0x2400)
        };
        let mut indirect = seed(0, &[], 512);
        let parts = indirect[..48].to_vec();
        indirect[..16].copy_from_slice(&descriptor(0x1900, 48, INDIRECT, 0));
        indirect[0x1900..0x1930].copy_from_slice(&parts);
        let mut circle = seed(0, &[], 512);
        circle[32..48].copy_from_slice(&descriptor(STATUS, 1, WRITABLE | NEXT, 0));
        let mut table = seed(0, &[], 512);
        table[..16].copy_from_slice(&descriptor(0x1900, 0xffff * 16, INDIRECT, 0));
        table[0x1900..0x1910].copy_from_slice(&descriptor(DATA, 1, WRITABLE | NEXT, 0));
        let mut beyond = seed(0, &[], 512);
        beyond[16..32].copy_from_slice(&descriptor(DATA, u32::MAX as usize, WRITABLE | NEXT, 2));
        let seeds = [
            ("table", table),
            ("beyond", beyond),
            ("read", seed(0, &[], 512)),
            ("write", seed(1, &[9; 512], 0)),
            ("flush", seed(4, &[], 0)),
            ("discard", seed(11, &segment(1, 2, 0), 0)),
            ("zeroes", seed(13, &segment(1, 2, 1), 0)),
            ("indirect", indirect),
            ("circle", circle),
        ];
        replay("virtqueue", &seeds, virtqueue);
    }
}
