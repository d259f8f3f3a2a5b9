//! A thread that looks at the plug: how much it holds, and whether it had to drop anything.
//!
//! The kernel tells nobody that a queue fills. While frames are held the thread looks every few milliseconds, which costs
//! one small request each time, and asks for the epoch to end early once half the limit is held.

use crate::device::{Counters, Device};
use crate::netlink::{Netlink, NetlinkError};
use crate::plug::{Plug, QueueStats};
use aventine_api::{Context, ErrorCode, Host, NetworkStats, PluginError, Side};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the plug is looked at while it holds. 64 MiB come in at 10 Gbit/s in ten times as long.
const LOOK: Duration = Duration::from_millis(5);
/// How often the tap's counters are looked at otherwise.
const GLANCE: Duration = Duration::from_millis(100);

/// Why a buffer cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// No socket.
    #[error("Cannot watch the network buffer")]
    Netlink(#[from] NetlinkError),
    /// No thread.
    #[error("Cannot start the thread that watches the network buffer")]
    Thread(#[from] io::Error),
}

/// What the thread found gone.
#[derive(Debug, thiserror::Error)]
#[error("The plug at {device} is gone, and with it the frames that it held")]
struct Vanished {
    device: String,
    source: NetlinkError,
}

#[derive(Default)]
struct State {
    /// While frames are held.
    plug: Option<Plug>,
    /// Whether an early epoch was asked for since the last seal.
    asked: bool,
    /// Whether frames from the guest pass or are held: on a silent side they count for nothing.
    counts: bool,
    stopped: bool,
    queue: QueueStats,
    /// The tap's counters at the last look; none before the first.
    tap: Option<Counters>,
    /// Frames from the guest that came while `counts`.
    came: u64,
    to_guest: u64,
    dropped: u64,
    discarded: u64,
}

impl State {
    fn tap_shows(&mut self, now: Counters) {
        let before = self.tap.replace(now).unwrap_or(now);
        if self.counts {
            self.came += now.received.saturating_sub(before.received);
        }
        self.to_guest += now.sent.saturating_sub(before.sent);
    }

    /// What is new among the drops.
    fn plug_shows(&mut self, now: QueueStats) -> u32 {
        let dropped = now.drops.wrapping_sub(self.queue.drops);
        self.dropped += u64::from(dropped);
        self.queue = now;
        dropped
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's handle. Dropping it ends the thread.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches over the frames of the guest's device `tap`, and once told to over a plug at the device `plugged`.
    pub(crate) fn start(
        tap: u32,
        name: &str,
        plugged: &str,
        limit: u32,
        context: Context,
    ) -> Result<Watch, WatchError> {
        let state = State { counts: context.side == Side::Primary, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut watcher = Watcher {
            netlink: Netlink::open()?,
            shared: Arc::clone(&shared),
            host: context.host,
            tap,
            plugged: plugged.to_owned(),
            limit,
        };
        watcher.look_at_tap();
        let thread = std::thread::Builder::new().name(format!("net {name}")).spawn(move || watcher.run())?;
        Ok(Watch { shared, thread: Some(thread) })
    }

    /// Frames are held by `plug` from now on, whose counters begin at `baseline`.
    pub(crate) fn hold(&self, plug: Option<Plug>, baseline: QueueStats) {
        let mut state = self.shared.lock();
        (state.plug, state.queue, state.asked) = (plug, baseline, false);
        self.shared.changed.notify_one();
    }

    /// An epoch was sealed: another one may be asked for. Guest paused: takes no lock that is held across I/O.
    pub(crate) fn sealed(&self) {
        self.shared.lock().asked = false;
    }

    /// Frames are held no more; on a side that is not the owner, they count no more either.
    pub(crate) fn rest(&self, owner: bool) {
        let mut state = self.shared.lock();
        if !owner {
            state.discarded += u64::from(state.queue.packets);
        }
        state.counts = owner;
        state.plug = None;
        (state.queue.packets, state.queue.bytes) = (0, 0);
    }

    pub(crate) fn stats(&self) -> NetworkStats {
        let state = self.shared.lock();
        let held = u64::from(state.queue.packets);
        NetworkStats {
            held_frames: held,
            held_bytes: state.queue.bytes.into(),
            sent_frames: state.came.saturating_sub(held + state.dropped + state.discarded),
            received_frames: state.to_guest,
            dropped_frames: state.dropped,
            uncopied_frames: 0,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to clean up.
            let _ = thread.join();
        }
    }
}

struct Watcher {
    netlink: Netlink,
    shared: Arc<Shared>,
    host: Arc<dyn Host>,
    tap: u32,
    plugged: String,
    limit: u32,
}

impl Watcher {
    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut since_tap = Duration::ZERO;
        loop {
            let plug = {
                let state = shared.lock();
                if state.stopped {
                    return;
                }
                let wait = if state.plug.is_some() { LOOK } else { GLANCE };
                since_tap += wait;
                let waited = shared.changed.wait_timeout(state, wait);
                let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                state.plug
            };
            if let Some(plug) = plug {
                self.look_at_plug(plug);
            }
            if since_tap >= GLANCE {
                since_tap = Duration::ZERO;
                self.look_at_tap();
            }
        }
    }

    fn look_at_tap(&mut self) {
        // A tap that is gone is noticed by its guest, and by the plug on it.
        if let Ok(Some(device)) = Device::at(&mut self.netlink, self.tap) {
            self.shared.lock().tap_shows(device.counters);
        }
    }

    fn look_at_plug(&mut self, plug: Plug) {
        let seen = plug.stats(&mut self.netlink);
        let mut state = self.shared.lock();
        if state.plug != Some(plug) {
            return;
        }
        match seen {
            Ok(queue) => {
                let dropped = state.plug_shows(queue);
                let full = queue.bytes >= self.limit / 2 && !state.asked;
                state.asked |= full;
                drop(state);
                if dropped > 0 {
                    let (device, limit) = (&self.plugged, self.limit);
                    tracing::warn!(
                        device,
                        dropped,
                        limit,
                        "kernel-drop: the plug was full and dropped frames of the guest"
                    );
                }
                if full {
                    self.host.request_epoch();
                }
            }
            Err(source) => {
                state.plug = None;
                drop(state);
                let error = Vanished { device: self.plugged.clone(), source };
                self.host.failed(PluginError::new(ErrorCode::Io, error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_plugs_that_begin_anew() {
        let mut state = State { counts: true, ..State::default() };
        let tap = |received, sent| Counters { received, sent, dropped: 0 };
        state.tap_shows(tap(100, 50));
        assert_eq!((state.came, state.to_guest), (0, 0));
        state.tap_shows(tap(110, 53));
        assert_eq!((state.came, state.to_guest), (10, 3));
        assert_eq!(state.plug_shows(QueueStats { drops: 4, packets: 2, ..QueueStats::default() }), 4);
        assert_eq!(state.plug_shows(QueueStats { drops: 5, packets: 2, ..QueueStats::default() }), 1);
        assert_eq!(state.dropped, 5);
        state.counts = false;
        state.tap_shows(tap(120, 54));
        assert_eq!((state.came, state.to_guest), (10, 4));
    }
}
