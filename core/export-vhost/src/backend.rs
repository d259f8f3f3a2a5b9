//! What the vhost-user library asks of the device: its features, its memory, and to look into its queues.

use crate::memory::{Memory, Tracked, Written};
use crate::request::{Requests, config, feature};
use aventine_api::BlockDevice;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

const QUEUES: u16 = 16;
const QUEUE_SIZE: usize = 1024;

// Bits that all virtio devices share.
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

type Space = GuestMemoryAtomic<Memory>;
type Queue = VringMutex<Space>;

/// One connection's device.
pub(crate) struct Backend {
    device: Arc<dyn BlockDevice>,
    memory: Space,
    tracked: Arc<Tracked>,
    /// Held while a request is carried out and its answer written.
    serving: Mutex<Vec<u8>>,
    write_through: AtomicBool,
}

impl Backend {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, memory: Space, tracked: Arc<Tracked>) -> Backend {
        Backend { device, memory, tracked, serving: Mutex::default(), write_through: AtomicBool::new(false) }
    }

    /// Carries out what is in a queue; ends early when it is stopped.
    pub(crate) fn empty(&self, queue: &Queue) -> Result<(), virtio_queue::Error> {
        let mut expected = false;
        loop {
            queue.disable_notification()?;
            let mut some = false;
            while self.next(queue)? {
                some = true;
            }
            if !queue.get_ref().get_queue().ready() || !queue.enable_notification()? {
                return Ok(());
            }
            // The ring says that there is more, and there is nothing in it.
            if expected && !some {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
            expected = true;
        }
    }

    /// Carries out the next request of a queue, under the queue's lock: whoever stops the queue waits for it.
    fn next(&self, queue: &Queue) -> Result<bool, virtio_queue::Error> {
        let mut buffer = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ring = queue.get_mut();
        if !ring.get_queue().ready() || !ring.is_enabled() {
            return Ok(false);
        }
        let memory = self.memory.memory();
        let Some(chain) = ring.get_queue_mut().pop_descriptor_chain(&*memory) else { return Ok(false) };
        let head = chain.head_index();
        let write_through = self.write_through.load(Ordering::Relaxed);
        let mut requests = Requests { device: &*self.device, write_through, buffer: &mut buffer };
        let written = requests.serve(chain, &memory);
        ring.add_used(head, written)?;
        if ring.needs_notification()? {
            // A guest that cannot be told looks for itself, sometime.
            let _ = ring.signal_used_queue();
        }
        Ok(true)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = Written;
    type Vring = Queue;

    fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VERSION_1
            | INDIRECT
            | EVENT_INDEX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::MULTI_QUEUE
            | feature::DISCARD
            | feature::WRITE_ZEROES
            | VhostUserVirtioFeatures::LOG_ALL.bits()
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.write_through.store(features & feature::FLUSH == 0, Ordering::Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // QEMU takes a device without the log for one that cannot be migrated.
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = config(self.device.size(), QUEUES);
        let asked = config.iter().copied().chain(std::iter::repeat(0));
        asked.skip(offset as usize).take(size as usize).collect()
    }

    fn update_memory(&self, memory: Space) -> io::Result<()> {
        // Waits for the request that still uses the old memory.
        let _serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.tracked.renew(&memory.memory())?)
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&self, event: u16, _: EventSet, queues: &[Queue], _: usize) -> io::Result<()> {
        let Some(queue) = queues.get(usize::from(event)) else { return Ok(()) };
        if let Err(error) = self.empty(queue) {
            // An error returned would end the thread, and every other queue with it.
            tracing::warn!(queue = event, %error, "the guest's queue makes no sense");
        }
        Ok(())
    }
}
