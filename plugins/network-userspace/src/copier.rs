//! Primary: copies of recent frames, on their way to the standby.
//!
//! After a takeover the guest goes on at the last committed checkpoint *n*. What was sent to it later is lost with the
//! primary, and what it sent in *n* and earlier may be, if the acknowledgement did not arrive; only the retransmission
//! timers of both ends would bring it again. So the standby gets copies of both and repeats them.
//!
//! **What checkpoint *n* covers.** Frames to the guest are numbered as they are written to QEMU's socket. A frame
//! counts as covered if the socket was seen empty after the frame was written and before the pause for *n* was asked for:
//! QEMU had read it while the guest ran. QEMU's main loop hands what it reads to the device at once and handles the
//! request to pause only afterwards, so such a frame is in the guest's memory. (A device without room leaves frames in
//! QEMU's own queue, which a pause empties: QEMU loses those in every pause, whether or not a host is lost.) Everything
//! else counts as not covered: what lies in the socket, what comes in the pause, which QEMU queues outside the device
//! state, and what is written between the last look and the pause although the guest may still get it. A frame too many
//! is a repetition; a frame too few costs a retransmission timer.
//!
//! Frames from the guest need no such care: those of an epoch are the ones that are sealed into it.
//!
//! **Best effort.** The queue is bounded, and what does not fit pushes out the oldest. Of each epoch only the first
//! [`SHARE`] bytes of each way are copied: whoever moves more has frames under way behind them, and their arrival lets
//! TCP find the gap without a timer. Whatever happens to the channel, neither the guest nor the epoch verbs wait.

use crate::wire::{Frames, Seal, Way};
use aventine_api::{Epoch, ErrorCode, PluginError, RecordTx};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use tracing::{debug, warn};

/// Bytes of frames of each way that are copied of one epoch.
const SHARE: u64 = 256 << 10;
/// Bytes that wait for the channel at most.
const QUEUE: usize = 2 << 20;
/// What an item of the queue takes beside its payload.
const ITEM: usize = 128;

/// Numbers frames and hands copies to the thread that sends them. Dropping it ends the copies.
pub(crate) struct Copier {
    queue: Arc<Queue>,
    to_guest: Counter,
    from_guest: Counter,
    /// Frames to the guest that QEMU had read when it was last looked, and as of the last [`Copier::pausing`].
    taken: u64,
    covered: u64,
    sealed: Epoch,
    released: Epoch,
    /// Whether there was a pause: what came before is in the first checkpoint, but for what the first pause overtakes.
    begun: bool,
    uncopied: u64,
}

#[derive(Default)]
struct Counter {
    /// Number of the next frame.
    next: u64,
    /// Bytes copied of the open epoch.
    spent: u64,
}

impl Copier {
    /// Sends to `tx` on a thread that ends with the channel or after the copier is dropped.
    pub(crate) fn start(id: &str, tx: Box<dyn RecordTx>) -> io::Result<Copier> {
        let queue = Arc::new(Queue::default());
        let sending = Arc::clone(&queue);
        // Not kept: it may wait in the channel, and ends with it.
        thread::Builder::new().name(format!("{id} copies")).spawn(move || sending.run(tx))?;
        Ok(Copier {
            queue,
            to_guest: Counter::default(),
            from_guest: Counter::default(),
            taken: 0,
            covered: 0,
            sealed: Epoch::COPY,
            released: Epoch::COPY,
            begun: false,
            uncopied: 0,
        })
    }

    /// A frame was written to the guest's socket, or one from the guest is held.
    pub(crate) fn copy(&mut self, way: Way, frame: &[u8]) {
        let counter = match way {
            Way::ToGuest => &mut self.to_guest,
            Way::FromGuest => &mut self.from_guest,
        };
        let number = counter.next;
        counter.next += 1;
        if !self.begun {
            return;
        }
        if counter.spent + frame.len() as u64 > SHARE {
            self.uncopied += 1;
            return;
        }
        counter.spent += frame.len() as u64;
        self.queue.push(way, number, frame);
    }

    /// The guest's socket was seen empty: QEMU has read every frame so far.
    pub(crate) fn all_taken(&mut self) {
        self.taken = self.to_guest.next;
    }

    /// The pause is about to be asked for.
    pub(crate) fn pausing(&mut self) {
        self.begun = true;
        self.covered = self.taken;
    }

    /// What is held so far belongs to `epoch`. Inside the pause: one small record.
    pub(crate) fn seal(&mut self, epoch: Epoch) {
        if epoch <= self.sealed {
            return;
        }
        self.sealed = epoch;
        (self.to_guest.spent, self.from_guest.spent) = (0, 0);
        let (to_guest, from_guest) = (self.covered, self.from_guest.next);
        self.queue.push_seal(Seal { epoch, to_guest, from_guest, released: self.released });
    }

    /// The standby has acknowledged `epoch`.
    pub(crate) fn released(&mut self, epoch: Epoch) {
        self.released = self.released.max(epoch);
    }

    /// Lets the thread send what was added.
    pub(crate) fn flush(&self) {
        self.queue.work.notify_one();
    }

    /// Frames that were not copied, or whose copies did not get into the channel.
    pub(crate) fn uncopied(&self) -> u64 {
        self.uncopied + self.queue.lock().pushed_out
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.queue.end();
    }
}

enum Item {
    Frames(Frames),
    Seal(Seal),
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// Frames that found no place, or whose place was taken.
    pushed_out: u64,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, way: Way, number: u64, frame: &[u8]) {
        let mut state = self.lock();
        if state.ended {
            state.pushed_out += 1;
            return;
        }
        match state.items.back_mut() {
            Some(Item::Frames(last)) if last.continues(way, number, frame.len()) => last.add(frame),
            _ => {
                let mut frames = Frames::new(way, number);
                frames.add(frame);
                state.items.push_back(Item::Frames(frames));
                state.bytes += ITEM;
            }
        }
        state.bytes += frame.len();
        state.make_room();
    }

    fn push_seal(&self, seal: Seal) {
        let mut state = self.lock();
        if !state.ended {
            state.items.push_back(Item::Seal(seal));
            state.bytes += ITEM;
            state.make_room();
            self.work.notify_one();
        }
    }

    /// The next item; `None` once the queue has ended.
    fn next(&self) -> Option<Item> {
        let idle = |s: &mut State| s.items.is_empty() && !s.ended;
        let mut state = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        state.pop()
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        while let Some(item) = state.pop() {
            state.pushed_out += item.frames();
        }
        self.work.notify_one();
    }

    fn run(&self, mut tx: Box<dyn RecordTx>) {
        while let Some(item) = self.next() {
            let sent = match &item {
                Item::Frames(frames) => tx.send(frames.head(), &[&frames.payload]),
                Item::Seal(seal) => tx.send(seal.head(), &[&seal.payload()]),
            };
            if let Err(error) = sent {
                self.end();
                self.lock().pushed_out += item.frames();
                return tell(&error);
            }
        }
    }
}

/// The end of the link is told by those who depend on it.
fn tell(error: &PluginError) {
    match error.code() {
        ErrorCode::PeerLost => debug!(error = error.chain(), "no more copies of frames go to the standby"),
        _ => warn!(error = error.chain(), "no more copies of frames go to the standby"),
    }
}

impl State {
    fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= ITEM + item.bytes();
        Some(item)
    }

    fn make_room(&mut self) {
        while self.bytes > QUEUE
            && let Some(oldest) = self.pop()
        {
            self.pushed_out += oldest.frames();
        }
    }
}

impl Item {
    fn frames(&self) -> u64 {
        match self {
            Item::Frames(frames) => frames.count,
            Item::Seal(_) => 0,
        }
    }

    /// Bytes of its frames.
    fn bytes(&self) -> usize {
        match self {
            Item::Frames(frames) => frames.bytes(),
            Item::Seal(_) => 0,
        }
    }
}
