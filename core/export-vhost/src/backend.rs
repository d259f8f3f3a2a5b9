//! What the vhost-user library asks of the device: its features, its memory, and to look into its queues.

use crate::memory::{Memory, Tracked, Written};
use crate::request::{Requests, config, feature};
use crate::turn::Turn;
use aventine_api::BlockDevice;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

const QUEUES: u16 = 16;
const QUEUE_SIZE: usize = 1024;
/// Requests that a queue may have carried out before the other queues, and whoever ends the device, have their turn: a guest that
/// goes on adding some keeps nobody waiting.
pub(crate) const ROUND: usize = 128;

// Bits that all virtio devices share.
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

type Space = GuestMemoryAtomic<Memory>;
type Queue = VringMutex<Space>;

/// One connection's device.
pub(crate) struct Backend {
    device: Arc<dyn BlockDevice>,
    block: u32,
    memory: Space,
    tracked: Arc<Tracked>,
    turn: Turn,
    /// Only the worker's.
    buffer: Mutex<Vec<u8>>,
    write_through: AtomicBool,
}

/// What a queue has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing, or the queue is stopped; the guest tells of the next request.
    Nothing,
    /// Perhaps more requests, of which the guest does not tell.
    More,
}

impl Backend {
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        block: u32,
        memory: Space,
        tracked: Arc<Tracked>,
    ) -> Backend {
        let (turn, buffer, write_through) = Default::default();
        Backend { device, block, memory, tracked, turn, buffer, write_through }
    }

    /// Carries out what is in a queue, at most [`ROUND`] requests; ends early when it is stopped.
    pub(crate) fn round(&self, queue: &Queue) -> Result<Left, virtio_queue::Error> {
        let mut served = 0;
        let mut expected = false;
        loop {
            if self.in_turn(queue, VringState::disable_notification)?.is_none() {
                return Ok(Left::Nothing);
            }
            let before = served;
            while self.next(queue)? {
                served += 1;
                if served == ROUND {
                    return Ok(Left::More);
                }
            }
            if self.in_turn(queue, VringState::enable_notification)? != Some(true) {
                return Ok(Left::Nothing);
            }
            // The ring says that there is more, and there is nothing in it.
            if expected && served == before {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
            expected = true;
        }
    }

    /// Writes to the rings of a queue; `None` if it is stopped. Nobody stops it, or takes its memory away, meanwhile.
    fn in_turn<T>(
        &self,
        queue: &Queue,
        write: impl FnOnce(&mut VringState<Space>) -> Result<T, virtio_queue::Error>,
    ) -> Result<Option<T>, virtio_queue::Error> {
        let _turn = self.turn.begin();
        let mut ring = queue.get_mut();
        is_running(&ring).then(|| write(&mut ring)).transpose()
    }

    /// Carries out the next request of a queue. The queue is locked only to take it and to answer it: whoever stops the queue waits
    /// for it by [`Turn::stop`].
    fn next(&self, queue: &Queue) -> Result<bool, virtio_queue::Error> {
        let _turn = self.turn.begin();
        let memory = self.memory.memory();
        let chain = {
            let mut ring = queue.get_mut();
            if !is_running(&ring) {
                return Ok(false);
            }
            let Some(chain) = ring.get_queue_mut().pop_descriptor_chain(&*memory) else { return Ok(false) };
            chain
        };
        let head = chain.head_index();
        let write_through = self.write_through.load(Ordering::Relaxed);
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut requests =
            Requests { device: &*self.device, block: self.block, write_through, buffer: &mut buffer };
        let written = requests.serve(chain, &memory);
        let mut ring = queue.get_mut();
        ring.add_used(head, written)?;
        if ring.needs_notification()? {
            // A guest that cannot be told looks for itself, sometime.
            let _ = ring.signal_used_queue();
        }
        Ok(true)
    }
}

fn is_running(ring: &VringState<Space>) -> bool {
    ring.get_queue().ready() && ring.is_enabled()
}

/// As if the guest told of another request.
fn kick(queue: &Queue) -> io::Result<()> {
    let ring = queue.get_ref();
    // It has none when it has been stopped; the next start looks into the queue by itself.
    let Some(event) = ring.get_kick() else { return Ok(()) };
    // SAFETY: the descriptor is open as long as the queue has it, and `ring` keeps the queue locked.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    rustix::io::write(event, &1_u64.to_ne_bytes())?;
    Ok(())
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
            | feature::SIZE_MAX
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
        let config = config(self.device.size(), self.block, QUEUES);
        let asked = config.iter().copied().chain(std::iter::repeat(0));
        asked.skip(offset as usize).take(size as usize).collect()
    }

    fn update_memory(&self, memory: Space) -> io::Result<()> {
        // Waits for the request that still uses the old memory.
        let _still = self.turn.stop();
        Ok(self.tracked.renew(&memory.memory())?)
    }

    fn stop_vring(&self, _: u32) -> io::Result<()> {
        drop(self.turn.stop());
        Ok(())
    }

    fn reset_device(&self) {
        drop(self.turn.stop());
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&self, event: u16, _: EventSet, queues: &[Queue], _: usize) -> io::Result<()> {
        let Some(queue) = queues.get(usize::from(event)) else { return Ok(()) };
        // An error returned would end the thread, and every other queue with it.
        match self.round(queue) {
            Ok(Left::Nothing) => {}
            Ok(Left::More) => {
                if let Err(error) = kick(queue) {
                    tracing::warn!(queue = event, %error, "the rest of the guest's queue waits for its next request");
                }
            }
            Err(error) => tracing::warn!(queue = event, %error, "the guest's queue makes no sense"),
        }
        Ok(())
    }
}
