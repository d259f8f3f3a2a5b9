//! What is asked of a host's traffic beyond its bytes: how many connections, how fast, how urgent, and what it costs.
//!
//! - The cap counts what this side's bulk channels send, all of them together, before encryption. Control is never capped.
//! - What may be sent at once beyond the cap is [`CREDIT`] of it, to make up for sleep that lasts too long.
//! - Processor time is taken around large pieces alone, on the thread that works: two system calls for each.

use crate::channel::CONTROL;
use crate::state::LinkState;
use aventine_api::{Host, Metric};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that a capped channel hands to the system at once.
pub(crate) const QUANTUM: usize = 64 << 10;
/// How much of the past an idle or late sender may make up for.
const CREDIT: Duration = Duration::from_millis(10);
/// Smaller pieces are not worth the clock.
const METERED: usize = 64 << 10;
/// Control's priority: the highest that needs no privilege. Default queueing disciplines send such packets first.
const CONTROL_PRIORITY: u8 = 6;

/// What the keys `streams`, `bandwidth`, `priority` and `source` hold.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most connections of a bulk channel, 1 to [`MAX_STREAMS`](crate::MAX_STREAMS); the smaller number of both hosts counts.
    pub streams: u8,
    /// Bytes a second that bulk channels send.
    pub bandwidth: Option<u64>,
    /// Of bulk channels, 0 to 5: below control's. `None` leaves it to the system.
    pub priority: Option<u8>,
    /// The address that connections are made from.
    pub source: Option<IpAddr>,
}

impl Default for Options {
    fn default() -> Options {
        Options { streams: 1, bandwidth: None, priority: None, source: None }
    }
}

/// What the links of one plugin share.
#[derive(Clone, Default)]
pub(crate) struct Traffic {
    pub(crate) options: Options,
    pub(crate) cap: Option<Arc<Cap>>,
    pub(crate) meters: Meters,
}

impl Traffic {
    pub(crate) fn new(options: Options) -> Traffic {
        let cap = options.bandwidth.map(|rate| Arc::new(Cap::new(rate)));
        Traffic { options, cap, meters: Meters::default() }
    }

    /// Most connections of the channel `name`.
    pub(crate) fn streams(&self, name: &str) -> u8 {
        if name == CONTROL { 1 } else { self.options.streams }
    }

    /// Gives a connection its channel's priority.
    pub(crate) fn mark(&self, stream: &TcpStream, name: &str) -> io::Result<()> {
        let socket = SockRef::from(stream);
        let priority = match self.options.priority {
            Some(_) if name == CONTROL => Some(CONTROL_PRIORITY),
            other => other,
        };
        if let Some(priority) = priority {
            // The class selector of the same number; the two lowest bits are not part of it.
            let class = u32::from(priority) << 5;
            let local = stream.local_addr()?;
            if local.is_ipv6() {
                socket.set_tclass_v6(class)?;
            }
            if is_v4(local) {
                socket.set_tos_v4(class)?;
            }
        }
        // After the class, which the system derives another priority from.
        match priority.or((name == CONTROL).then_some(CONTROL_PRIORITY)) {
            Some(priority) => socket.set_priority(priority.into()),
            None => Ok(()),
        }
    }
}

/// Whether its packets are those of IPv4.
fn is_v4(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}

/// A bandwidth that is not exceeded.
pub(crate) struct Cap {
    /// Bytes a second.
    rate: u64,
    /// When everything let through so far has been sent at `rate`.
    sent_at: Mutex<Instant>,
}

impl Cap {
    fn new(rate: u64) -> Cap {
        Cap { rate, sent_at: Mutex::new(Instant::now()) }
    }

    /// When `bytes` more may be sent, by one who asks `now`.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(self.rate)) as u64);
        let mut sent_at = self.sent_at.lock().unwrap_or_else(PoisonError::into_inner);
        let may = (*sent_at).max(now.checked_sub(CREDIT).unwrap_or(now));
        *sent_at = may + takes;
        may
    }

    /// Waits until `bytes` more may be sent, or the link has ended.
    pub(crate) fn wait(&self, bytes: usize, link: &LinkState) {
        let may = self.book(bytes, Instant::now());
        loop {
            let left = may.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let limit = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            let mut ended = [PollFd::from_borrowed_fd(link.wake(), PollFlags::IN)];
            if matches!(poll(&mut ended, Some(&limit)), Ok(1..)) {
                return;
            }
        }
    }
}

/// What sending and receiving cost.
#[derive(Clone, Default)]
pub(crate) struct Meters {
    pub(crate) send: Option<Arc<Meter>>,
    pub(crate) recv: Option<Arc<Meter>>,
}

impl Meters {
    pub(crate) fn new(host: &dyn Host) -> Meters {
        let meter = |name, help| Some(Arc::new(Meter::new(host.metric(name, help))));
        Meters {
            send: meter("send_cpu_us_per_gib", "processor time for each GiB sent in large pieces, so far"),
            recv: meter(
                "recv_cpu_us_per_gib",
                "processor time for each GiB received in large pieces, so far",
            ),
        }
    }
}

/// Processor time for each GiB.
pub(crate) struct Meter {
    metric: Arc<dyn Metric>,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

impl Meter {
    fn new(metric: Arc<dyn Metric>) -> Meter {
        Meter { metric, bytes: AtomicU64::new(0), nanos: AtomicU64::new(0) }
    }

    fn add(&self, bytes: usize, time: Duration) {
        let add = |to: &AtomicU64, more: u64| to.fetch_add(more, Ordering::Relaxed) + more;
        let bytes = add(&self.bytes, bytes as u64);
        let nanos = add(&self.nanos, time.as_nanos() as u64);
        self.metric.set((u128::from(nanos) * (1 << 30) / 1000 / u128::from(bytes)) as u64);
    }
}

/// Does something with `bytes` bytes, and counts what it costs if that is worth it.
pub(crate) fn metered<T>(meter: Option<&Meter>, bytes: usize, work: impl FnOnce() -> T) -> T {
    let Some(meter) = meter.filter(|_| bytes >= METERED) else { return work() };
    let before = processor_time();
    let done = work();
    meter.add(bytes, processor_time().saturating_sub(before));
    done
}

/// Of this thread, so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_cap_holds_over_any_time_and_an_idle_sender_gains_no_more_than_its_credit() {
        let cap = Cap::new(1 << 20);
        let begin = *cap.sent_at.lock().unwrap() + Duration::from_secs(5);
        // It was idle for five seconds: credit for 10 ms, then one quantum in each sixteenth of a second.
        let mut now = begin;
        for quanta in 0..100u32 {
            now = now.max(cap.book(QUANTUM, now));
            let due = (Duration::from_millis(1000) * quanta / 16).saturating_sub(CREDIT);
            assert_eq!(now.saturating_duration_since(begin), due, "{quanta}");
        }
    }

    #[test]
    fn a_meter_shows_microseconds_for_a_gib() {
        struct Shown(AtomicU64);
        impl Metric for Shown {
            fn set(&self, value: u64) {
                self.0.store(value, Ordering::SeqCst);
            }
            fn add(&self, _: u64) {}
        }
        let shown = Arc::new(Shown(AtomicU64::new(0)));
        let meter = Meter::new(Arc::clone(&shown) as Arc<dyn Metric>);
        meter.add(1 << 20, Duration::from_micros(300));
        assert_eq!(shown.0.load(Ordering::SeqCst), 300 * 1024);
        meter.add(1 << 20, Duration::from_micros(100));
        assert_eq!(shown.0.load(Ordering::SeqCst), 200 * 1024);
        metered(Some(&meter), METERED - 1, || ());
        assert_eq!(meter.bytes.load(Ordering::SeqCst), 2 << 20, "small pieces are not counted");
    }

    #[test]
    fn control_stands_above_bulk_on_the_wire_of_both_families() {
        // A listener at [::] also has the connections of IPv4.
        for (listen, to) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1")] {
            let listener = TcpListener::bind(format!("{listen}:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let near = TcpStream::connect(format!("{to}:{port}")).unwrap();
            let far = listener.accept().unwrap().0;
            for stream in [&near, &far] {
                let marked = |priority, name| {
                    Traffic::new(Options { priority, ..Options::default() }).mark(stream, name).unwrap();
                    let socket = SockRef::from(stream);
                    let v4 = is_v4(stream.local_addr().unwrap());
                    let class = if v4 { socket.tos_v4() } else { socket.tclass_v6() };
                    (socket.priority().unwrap(), class.unwrap() >> 5)
                };
                assert_eq!(marked(None, "pages"), (0, 0));
                assert_eq!(marked(None, CONTROL), (6, 0), "no class unless one is asked for");
                assert_eq!(marked(Some(2), "pages"), (2, 2));
                assert_eq!(marked(Some(2), CONTROL), (6, 6));
            }
        }
    }
}
