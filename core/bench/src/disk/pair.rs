//! A disk of a plugin on both sides, and the epochs between them.
//!
//! ```text
//!  primary's disk ══ frames on loopback TCP ══► standby's disk
//!    ▲ pausing, seal ── this thread    standby's thread: commit, apply ─┘ staged, settle
//! ```

use super::channel::channel;
use super::storage::fill;
use super::{BenchError, PRIMARY, STANDBY, find};
use aventine_api::{
    BlockDevice, Context, Disengage, Disk, DiskStats, Epoch, ErrorCode, Factory, Host, PluginError, RecordRx,
    Side,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel as queue};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two epochs under load.
const INTERVAL: Duration = Duration::from_millis(25);
/// How long what is due may take.
const PATIENCE: Duration = Duration::from_secs(60);

enum Event {
    Early,
    Committed(Epoch),
    Applied(Epoch),
    /// Nothing is held on the standby any more.
    Settled,
    Failed(&'static str, PluginError),
    LoadEnded,
}

/// What the standby's thread is to do.
enum Order {
    Follow(Epoch),
    Settle,
    End,
}

struct Reports {
    side: &'static str,
    events: Sender<Event>,
    /// To the standby's thread.
    staged: Option<Sender<Order>>,
}

// Whoever listens may have gone, at the end.
impl Host for Reports {
    fn request_epoch(&self) {
        let _ = self.events.send(Event::Early);
    }

    fn staged(&self, epoch: Epoch) {
        let _ = self.staged.as_ref().map(|thread| thread.send(Order::Follow(epoch)));
    }

    fn failed(&self, error: PluginError) {
        let _ = self.events.send(Event::Failed(self.side, error));
    }
}

/// A replicated disk after its initial copy.
pub(super) struct Pair {
    plugin: String,
    primary: Box<dyn Disk>,
    tell: Sender<Event>,
    events: Receiver<Event>,
    to_standby: Sender<Order>,
    standby: Option<JoinHandle<()>>,
    sealed: Epoch,
    committed: Epoch,
    applied: Epoch,
    settled: bool,
}

/// One side of a disk: its table, and where the plugin keeps what it keeps.
pub(super) struct Place {
    pub(super) table: String,
    pub(super) config_dir: PathBuf,
    pub(super) state_dir: PathBuf,
}

impl Pair {
    /// Replicates one disk to the other, and waits for the first epoch; the first `unfilled` bytes are written before.
    pub(super) fn start(plugin: &str, places: [Place; 2], unfilled: u64) -> Result<Pair, BenchError> {
        let [here, there] = places;
        let (tell, events) = queue();
        let (to_standby, staged) = queue();
        let failed = |doing| move |e| BenchError::Plugin(plugin.to_owned(), doing, e);
        let host = |side, staged| Arc::new(Reports { side, events: tell.clone(), staged });
        let mut primary = make(plugin, Side::Primary, here, host("the primary's disk worked", None))?;
        let standby = host("the standby's disk worked", Some(to_standby.clone()));
        let mut standby = make(plugin, Side::Standby, there, standby)?;
        let block = primary.block();
        let filled = fill(unfilled.min(block.size()), |at, data| block.write(at, data, false));
        filled.and_then(|()| block.flush()).map_err(failed("its disk was written to"))?;
        let [(tx, back), (answers, rx)] = channel().map_err(BenchError::Channel)?;
        let back = Some(Box::new(back) as Box<dyn RecordRx>);
        primary.replicate(Box::new(tx), back).map_err(failed("beginning to replicate"))?;
        standby.receive(Box::new(rx), Box::new(answers)).map_err(failed("beginning to receive"))?;
        let applying = thread::Builder::new().name(format!("{} apply", STANDBY));
        let standby = applying.spawn({
            let tell = tell.clone();
            move || follow(&mut *standby, &staged, &tell)
        });
        let standby = standby.map_err(BenchError::Thread)?;
        let mut pair = Pair {
            plugin: plugin.to_owned(),
            primary,
            tell,
            events,
            to_standby,
            standby: Some(standby),
            sealed: Epoch::COPY,
            committed: Epoch::COPY,
            applied: Epoch::COPY,
            settled: false,
        };
        pair.copy()?;
        Ok(pair)
    }

    fn copy(&mut self) -> Result<(), BenchError> {
        let (mut done, mut moved) = (0, Instant::now());
        loop {
            let progress = self.primary.progress();
            if progress.total > 0 && progress.done == progress.total {
                break;
            }
            if progress.done > done {
                (done, moved) = (progress.done, Instant::now());
            } else if moved.elapsed() > PATIENCE {
                return Err(BenchError::Silent(self.plugin.clone(), "is copied at the beginning"));
            }
            self.hear(Duration::from_millis(1))?;
        }
        self.seal()?;
        self.settle()
    }

    pub(super) fn device(&self) -> Arc<dyn BlockDevice> {
        self.primary.block()
    }

    pub(super) fn stats(&self) -> DiskStats {
        self.primary.stats()
    }

    /// `pausing` and `seal` of the next epoch: how long they took.
    pub(super) fn seal(&mut self) -> Result<Duration, BenchError> {
        self.sealed = self.sealed.next();
        let began = Instant::now();
        self.primary.pausing();
        let sealed = self.primary.seal(self.sealed);
        let took = began.elapsed();
        sealed.map_err(|e| BenchError::Plugin(self.plugin.clone(), "sealing", e))?;
        Ok(took)
    }

    /// Waits until the standby has committed every sealed epoch.
    pub(super) fn commit(&mut self) -> Result<(), BenchError> {
        self.until("is committed", |pair| pair.committed >= pair.sealed)
    }

    /// Waits until the standby has applied every sealed epoch, too, and holds nothing.
    pub(super) fn settle(&mut self) -> Result<(), BenchError> {
        self.until("is applied", |pair| pair.applied >= pair.sealed)?;
        self.settled = false;
        // A thread that has ended has told why.
        let _ = self.to_standby.send(Order::Settle);
        self.until("of what is applied is let go on the standby", |pair| pair.settled)
    }

    fn until(&mut self, what: &'static str, done: impl Fn(&Pair) -> bool) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > deadline {
                return Err(BenchError::Silent(self.plugin.clone(), what));
            }
            self.hear(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Runs `load` on a thread of its own and ends an epoch every 25 ms meanwhile, as long as the disk can hold one more; then
    /// waits until everything is committed. Answers how long that took in all.
    pub(super) fn under<T: Send>(
        &mut self,
        load: impl FnOnce() -> T + Send,
    ) -> Result<(T, Duration), BenchError> {
        let began = Instant::now();
        let tell = self.tell.clone();
        let done = thread::scope(|scope| {
            let loading = scope.spawn(move || {
                let done = load();
                let _ = tell.send(Event::LoadEnded);
                done
            });
            let driven = self.drive();
            if driven.is_err() {
                // The load goes on without, and ends. That it fails, too, says nothing more.
                let _ = self.primary.disengage(Disengage::Owner);
            }
            let done = loading.join().map_err(|_| BenchError::Panicked)?;
            driven.map(|()| done)
        })?;
        self.seal()?;
        self.commit()?;
        let took = began.elapsed();
        self.settle()?;
        Ok((done, took))
    }

    fn drive(&mut self) -> Result<(), BenchError> {
        let mut due = Instant::now() + INTERVAL;
        loop {
            let held = self.sealed.0 - self.committed.0 >= u64::from(self.primary.depth());
            let until_due = due.saturating_duration_since(Instant::now());
            match self.hear(if held { INTERVAL } else { until_due })? {
                Some(Event::LoadEnded) => return Ok(()),
                Some(Event::Early) => due = Instant::now(),
                _ => {}
            }
            if Instant::now() >= due && self.sealed.0 - self.committed.0 < u64::from(self.primary.depth()) {
                self.seal()?;
                due = Instant::now() + INTERVAL;
            }
        }
    }

    /// The next event within `limit`.
    fn hear(&mut self, limit: Duration) -> Result<Option<Event>, BenchError> {
        let event = match self.events.recv_timeout(limit) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
        };
        let failed = |doing, e| BenchError::Plugin(self.plugin.clone(), doing, e);
        match event {
            Event::Failed(doing, error) => return Err(failed(doing, error)),
            Event::Committed(epoch) => {
                self.committed = epoch;
                while let Err(error) = self.primary.release(epoch) {
                    if error.code() != ErrorCode::TimedOut {
                        return Err(failed("releasing", error));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Event::Applied(epoch) => self.applied = epoch,
            Event::Settled => self.settled = true,
            Event::Early | Event::LoadEnded => {}
        }
        Ok(Some(event))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Both only make the end an orderly one.
        let _ = self.primary.disengage(Disengage::Owner);
        let _ = self.to_standby.send(Order::End);
        let _ = self.standby.take().map(JoinHandle::join);
    }
}

fn follow(disk: &mut dyn Disk, orders: &Receiver<Order>, tell: &Sender<Event>) {
    for order in orders {
        let done = match order {
            Order::End => return,
            Order::Follow(epoch) => disk
                .commit(epoch)
                .map(|()| tell.send(Event::Committed(epoch)))
                .and_then(|_| disk.apply(epoch))
                .map(|()| tell.send(Event::Applied(epoch))),
            Order::Settle => {
                settle(disk, tell);
                continue;
            }
        };
        if let Err(error) = done {
            let _ = tell.send(Event::Failed("the standby's disk followed", error));
            return;
        }
    }
}

/// A plugin may hold on to what it was told to apply until that is where it belongs.
fn settle(disk: &dyn Disk, tell: &Sender<Event>) {
    let began = Instant::now();
    while disk.stats().buffered_bytes > 0 {
        if began.elapsed() > PATIENCE {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let _ = tell.send(Event::Settled);
}

fn make(plugin: &str, side: Side, place: Place, host: Arc<dyn Host>) -> Result<Box<dyn Disk>, BenchError> {
    let Place { table, config_dir, state_dir } = place;
    let Factory::Disk(make) = find(plugin)?.factory else { unreachable!("plugins are found by kind") };
    let name = if side == Side::Primary { PRIMARY } else { STANDBY };
    let context = Context { guest: "bench".into(), id: name.into(), side, state_dir, config_dir, host };
    make(&table, context).map_err(|e| BenchError::Plugin(plugin.to_owned(), "being set up", e))
}
