//! A disk of a plugin on both sides, and the epochs between them.
//!
//! ```text
//!  primary's disk ══ frames on loopback TCP ══► standby's disk
//!    ▲ pausing, seal ── this thread    standby's thread: commit, apply ─┘ staged
//! ```

use super::BenchError;
use super::channel::channel;
use super::cpu;
use aventine_api::{
    BlockDevice, Context, Disengage, Disk, DiskStats, Epoch, ErrorCode, Factory, Host, Kind, PluginError,
    RecordRx, Side,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel as queue};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two epochs under load.
const INTERVAL: Duration = Duration::from_millis(25);
/// A disk's table.
const IMAGE: &str = "image = 'disk.img'";
/// How long what is due may take.
const PATIENCE: Duration = Duration::from_secs(60);

enum Event {
    Early,
    Committed(Epoch),
    Applied(Epoch),
    Failed(&'static str, PluginError),
    LoadEnded,
}

struct Reports {
    side: &'static str,
    events: Sender<Event>,
    /// To the standby's thread; `None` ends it.
    staged: Option<Sender<Option<Epoch>>>,
}

// Whoever listens may have gone, at the end.
impl Host for Reports {
    fn request_epoch(&self) {
        let _ = self.events.send(Event::Early);
    }

    fn staged(&self, epoch: Epoch) {
        let _ = self.staged.as_ref().map(|thread| thread.send(Some(epoch)));
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
    to_standby: Sender<Option<Epoch>>,
    standby: Option<JoinHandle<()>>,
    sealed: Epoch,
    committed: Epoch,
    applied: Epoch,
}

impl Pair {
    /// Replicates `primary/disk.img` in `dir` to `standby/disk.img` in `other`, and waits for the first epoch.
    pub(super) fn start(plugin: &str, dir: &Path, other: &Path, cached: bool) -> Result<Pair, BenchError> {
        let (tell, events) = queue();
        let (to_standby, staged) = queue();
        let failed = |doing| move |e| BenchError::Plugin(plugin.to_owned(), doing, e);
        let host = |side, staged| Arc::new(Reports { side, events: tell.clone(), staged });
        let mut primary = make(plugin, Side::Primary, dir, cached, host("the primary's disk worked", None))?;
        let standby = host("the standby's disk worked", Some(to_standby.clone()));
        let mut standby = make(plugin, Side::Standby, other, cached, standby)?;
        let [(tx, back), (answers, rx)] = channel().map_err(BenchError::Channel)?;
        let back = Some(Box::new(back) as Box<dyn RecordRx>);
        primary.replicate(Box::new(tx), back).map_err(failed("beginning to replicate"))?;
        standby.receive(Box::new(rx), Box::new(answers)).map_err(failed("beginning to receive"))?;
        let applying = thread::Builder::new().name(format!("{} apply", cpu::STANDBY));
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
                return Err(BenchError::Silent(self.plugin.clone(), "of the initial copy"));
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
        self.until("commits", |pair| pair.committed >= pair.sealed)
    }

    /// Waits until the standby has applied every sealed epoch, too.
    pub(super) fn settle(&mut self) -> Result<(), BenchError> {
        self.until("applies", |pair| pair.applied >= pair.sealed)
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
            Event::Early | Event::LoadEnded => {}
        }
        Ok(Some(event))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Both only make the end an orderly one.
        let _ = self.primary.disengage(Disengage::Owner);
        let _ = self.to_standby.send(None);
        let _ = self.standby.take().map(JoinHandle::join);
    }
}

fn follow(disk: &mut dyn Disk, staged: &Receiver<Option<Epoch>>, tell: &Sender<Event>) {
    for epoch in staged.iter().map_while(|e| e) {
        let committed = disk.commit(epoch).map(|()| tell.send(Event::Committed(epoch)));
        let applied = committed.and_then(|_| disk.apply(epoch)).map(|()| tell.send(Event::Applied(epoch)));
        if let Err(error) = applied {
            let _ = tell.send(Event::Failed("the standby's disk followed", error));
            return;
        }
    }
}

/// Whether a plugin makes a disk of an image alone.
pub(super) fn takes_image(plugin: &str) -> bool {
    aventine_registry::find(Kind::Disk, plugin).is_some_and(|entry| (entry.validate)(IMAGE).is_ok())
}

fn make(
    plugin: &str,
    side: Side,
    dir: &Path,
    cached: bool,
    host: Arc<dyn Host>,
) -> Result<Box<dyn Disk>, BenchError> {
    let entry = aventine_registry::find(Kind::Disk, plugin).ok_or_else(|| {
        BenchError::Unknown(plugin.to_owned(), aventine_registry::names(Kind::Disk).join(", "))
    })?;
    let Factory::Disk(make) = entry.factory else { unreachable!("plugins are found by kind") };
    let name = if side == Side::Primary { cpu::PRIMARY } else { cpu::STANDBY };
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir).map_err(BenchError::Directory)?;
    let (state_dir, config_dir) = (dir.clone(), dir);
    let context = Context { guest: "bench".into(), id: name.into(), side, state_dir, config_dir, host };
    let text = if cached { format!("{IMAGE}\ndirect = false") } else { IMAGE.to_owned() };
    make(&text, context).map_err(|e| BenchError::Plugin(plugin.to_owned(), "being set up", e))
}
