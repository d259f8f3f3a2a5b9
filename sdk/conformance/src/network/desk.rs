//! A bench, and what the cases do at it.

use super::NetworkBench;
use super::crash::Controller;
use super::frame::{Way, frame, is_ours, name};
use crate::suite::Seen;
use crate::suite::test_name;
use aventine_api::{Epoch, Host, PluginError, Side};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// The engine's side of the buffer.
#[derive(Default)]
struct Listening {
    epoch: AtomicBool,
    failed: Mutex<Option<String>>,
}

impl Host for Listening {
    fn request_epoch(&self) {
        self.epoch.store(true, Ordering::Release);
    }

    fn staged(&self, _: Epoch) {}

    fn failed(&self, error: PluginError) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.chain());
    }
}

/// A bench with the engine's side of it.
pub(super) struct Desk<B> {
    pub(super) bench: B,
    host: Arc<Listening>,
    module: &'static str,
}

impl<B: NetworkBench> Desk<B> {
    pub(super) fn start(side: Side, module: &'static str) -> Desk<B> {
        let host = Arc::new(Listening::default());
        Desk { bench: B::start(side, host.clone()), host, module }
    }

    /// Another process makes the buffer, engages it, seals the frames of these numbers, and dies of SIGKILL. Then there
    /// is a new buffer.
    pub(super) fn crash(&mut self, numbers: Range<u32>) -> Seen {
        let test = test_name(self.module, "controller_that_crashes");
        self.bench.stop();
        let mut controller = Controller::start(self, &test)?;
        self.bench.connect();
        self.send(numbers.clone())?;
        controller.seal(numbers.len())?;
        self.expect_nothing("while a controller holds it")?;
        drop(controller);
        self.expect_nothing("after that controller was killed")?;
        self.bench.restart();
        Ok(())
    }

    /// Begins to hold.
    pub(super) fn engage(&mut self) -> Seen {
        self.bench.buffer().engage().map_err(|e| format!("`engage` failed: {}", e.chain()))
    }

    pub(super) fn seal(&mut self, epoch: u64) -> Seen {
        let sealed = self.bench.buffer().seal(Epoch(epoch));
        sealed.map_err(|e| format!("`seal({epoch})` failed: {}", e.chain()))
    }

    pub(super) fn release(&mut self, epoch: u64) -> Seen {
        let released = self.bench.buffer().release(Epoch(epoch));
        released.map_err(|e| format!("`release({epoch})` failed: {}", e.chain()))
    }

    /// The guest sends the frames of these numbers.
    pub(super) fn send(&mut self, numbers: Range<u32>) -> Seen {
        numbers.into_iter().try_for_each(|n| self.send_frame(&frame(Way::FromGuest, n)))
    }

    pub(super) fn send_frame(&mut self, frame: &[u8]) -> Seen {
        let deadline = Instant::now() + B::PATIENCE;
        while !self.bench.guest_sends(frame) {
            if Instant::now() >= deadline {
                return Err(format!("the guest could not send {} in {:?}", name(frame), B::PATIENCE));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The next of our frames that has reached the world.
    pub(super) fn arrived(&mut self) -> Option<Vec<u8>> {
        while let Some(frame) = self.bench.world_receives() {
            if is_ours(Way::FromGuest, &frame) {
                return Some(frame);
            }
        }
        None
    }

    /// The world receives the frames of these numbers, in order.
    pub(super) fn expect(&mut self, numbers: Range<u32>, when: &str) -> Seen {
        numbers.into_iter().try_for_each(|n| self.expect_frame(&frame(Way::FromGuest, n), when))
    }

    pub(super) fn expect_frame(&mut self, expected: &[u8], when: &str) -> Seen {
        let came = self.wait(|desk| desk.arrived());
        match came {
            Some(frame) if frame == expected => Ok(()),
            Some(frame) if name(&frame) == name(expected) => {
                Err(format!("{when}, {} came changed: {frame:02x?}", name(expected)))
            }
            Some(frame) => Err(format!("{when}, {} came where {} was due", name(&frame), name(expected))),
            None => Err(format!("{when}, {} did not come in {:?}", name(expected), B::PATIENCE)),
        }
    }

    /// The buffer holds this many frames, and none of them has reached the world.
    pub(super) fn expect_held(&mut self, frames: u64, when: &str) -> Seen {
        let mut held = 0;
        let settled = self.wait(|desk| {
            if let Some(frame) = desk.arrived() {
                return Some(Err(format!("{when}, {} left the buffer", name(&frame))));
            }
            held = desk.bench.buffer().stats().held_frames;
            (held == frames).then_some(Ok(()))
        });
        match settled {
            // Once more: a frame may have left before the count was right.
            Some(Ok(())) => self.expect_nothing(when),
            Some(broken) => broken,
            None => Err(format!("{when}, the buffer says that it holds {held} frames, not {frames}")),
        }
    }

    pub(super) fn expect_nothing(&mut self, when: &str) -> Seen {
        self.arrived().map_or(Ok(()), |frame| Err(format!("{when}, {} left the buffer", name(&frame))))
    }

    /// Frames pass in both directions; `numbers` are two that were not used yet.
    pub(super) fn expect_passing(&mut self, numbers: Range<u32>, when: &str) -> Seen {
        self.send(numbers.clone())?;
        self.expect(numbers.clone(), when)?;
        self.expect_inward(numbers, when)
    }

    /// Frames to the guest pass.
    pub(super) fn expect_inward(&mut self, numbers: Range<u32>, when: &str) -> Seen {
        for number in numbers {
            let sent = frame(Way::ToGuest, number);
            self.bench.world_sends(&sent);
            let came = self.wait(|desk| {
                std::iter::from_fn(|| desk.bench.guest_receives()).find(|f| is_ours(Way::ToGuest, f))
            });
            match came {
                Some(frame) if frame == sent => {}
                Some(frame) => {
                    return Err(format!("{when}, {} reached the guest, not {}", name(&frame), name(&sent)));
                }
                None => return Err(format!("{when}, {} did not reach the guest", name(&sent))),
            }
        }
        Ok(())
    }

    /// Whether an epoch was asked for since the last call; waits for it.
    pub(super) fn was_asked(&mut self) -> bool {
        self.wait(|desk| desk.host.epoch.swap(false, Ordering::AcqRel).then_some(())).is_some()
    }

    /// What was reported as failed, if anything was.
    pub(super) fn failure(&self) -> Option<String> {
        self.host.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks until there is something to see.
    pub(super) fn wait<T>(&mut self, mut look: impl FnMut(&mut Desk<B>) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + B::PATIENCE;
        loop {
            let seen = look(self);
            if seen.is_some() || Instant::now() >= deadline {
                return seen;
            }
            thread::sleep(LOOK);
        }
    }
}
