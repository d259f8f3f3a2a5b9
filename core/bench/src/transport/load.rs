//! Pages on their way, and the acknowledgements back.

use super::ways::{Stream, Way};
use super::{BenchError, Transfer};
use aventine_api::{PAGE_SIZE, PluginError};
use rustix::time::{ClockId, clock_gettime};
use std::thread;
use std::time::{Duration, Instant};

/// Pages that are handed to a channel at once, as a capture's batches are.
const BATCH: usize = 512;
/// Pages of the guest that is sent: more than caches hold.
const GUEST: usize = 64 << 10;
/// Pages of the receiving side's staging, reused.
const STAGING: usize = 16 << 10;

/// A guest's pages, in the order in which they are dirty.
pub(super) struct Load {
    memory: Vec<u8>,
    order: Vec<u32>,
    bytes: u64,
}

impl Load {
    pub(super) fn new(bytes: u64) -> Load {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let words = GUEST * PAGE_SIZE / 8;
        let memory = (0..words).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut order: Vec<u32> = (0..GUEST as u32).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.next() as usize % (at + 1));
        }
        Load { memory, order, bytes }
    }

    /// `pages` pages from the `from`th dirty one on.
    fn batch(&self, from: usize, pages: usize) -> Vec<&[u8]> {
        let page = |at: usize| {
            let start = self.order[at % GUEST] as usize * PAGE_SIZE;
            &self.memory[start..start + PAGE_SIZE]
        };
        (from..from + pages).map(page).collect()
    }

    /// Sends all bytes, a part on each stream. Ends with the acknowledgement that they have come.
    pub(super) fn goodput(&self, way: &mut Way) -> Result<Transfer, BenchError> {
        let batches = self.bytes as usize / PAGE_SIZE / BATCH / way.streams.len();
        let (name, streams) = (way.name, way.streams.len());
        let began = Instant::now();
        let times = thread::scope(|scope| {
            let ends = way.streams.iter_mut().enumerate().map(|(at, Stream { tx, rx })| {
                let sending = scope.spawn(move || {
                    let send = |n| tx.send(&self.batch((at * batches + n) * BATCH, BATCH));
                    (0..batches).try_for_each(send).map(|()| processor_time())
                });
                let receiving = scope.spawn(move || {
                    let mut staging = vec![0; STAGING * PAGE_SIZE];
                    let mut pieces = staging.chunks_exact_mut(BATCH * PAGE_SIZE);
                    let count = pieces.len();
                    let mut pieces: Vec<_> = pieces.by_ref().collect();
                    (0..batches).try_for_each(|n| rx.recv(pieces[n % count])).map(|()| processor_time())
                });
                (sending, receiving)
            });
            let ends: Vec<_> = ends.collect();
            let joined = |end: thread::ScopedJoinHandle<'_, Result<Duration, PluginError>>| match end.join() {
                Ok(time) => time.map_err(|e| BenchError::Broken(name, e)),
                Err(_) => Err(BenchError::Panicked),
            };
            ends.into_iter().map(|(s, r)| Ok((joined(s)?, joined(r)?))).collect::<Result<Vec<_>, _>>()
        })?;
        way.acknowledge()?;
        let took = began.elapsed();
        let bytes = (batches * BATCH * PAGE_SIZE * streams) as u64;
        let (sending, receiving) = match &way.meters {
            Some(meters) => meters.of_last(bytes),
            None => (times.iter().map(|t| t.0).sum(), times.iter().map(|t| t.1).sum()),
        };
        Ok(Transfer { bytes, took, sending, receiving })
    }

    /// Sends `count` checkpoints of `pages` pages, each after the acknowledgement of the one before.
    pub(super) fn round_trips(
        &self,
        way: &mut Way,
        pages: usize,
        count: usize,
    ) -> Result<Vec<Duration>, BenchError> {
        let Way { name, streams, ack, .. } = way;
        let name = *name;
        let broken = |e| BenchError::Broken(name, e);
        let Stream { tx, rx } = &mut streams[0];
        let Stream { tx: acknowledging, rx: acknowledged } = ack;
        thread::scope(|scope| {
            let standby = scope.spawn(move || {
                let mut staging = vec![0; pages * PAGE_SIZE];
                (0..count).try_for_each(|_| {
                    staging.chunks_mut(BATCH * PAGE_SIZE).try_for_each(|piece| rx.recv(piece))?;
                    acknowledging.send(&[&[1]])
                })
            });
            let mut times = Vec::with_capacity(count);
            for n in 0..count {
                let parts = self.batch(n * pages, pages);
                let began = Instant::now();
                parts.chunks(BATCH).try_for_each(|batch| tx.send(batch)).map_err(broken)?;
                acknowledged.recv(&mut [0]).map_err(broken)?;
                times.push(began.elapsed());
            }
            standby.join().map_err(|_| BenchError::Panicked)?.map_err(broken)?;
            Ok(times)
        })
    }
}

impl Way {
    /// One byte on the way back.
    fn acknowledge(&mut self) -> Result<(), BenchError> {
        let done = self.ack.tx.send(&[&[1]]).and_then(|()| self.ack.rx.recv(&mut [0]));
        done.map_err(|e| BenchError::Broken(self.name, e))
    }
}

/// Of this thread, so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Xorshift: the same pages in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
