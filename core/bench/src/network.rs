//! Network buffers: how long an epoch's verbs take, and how many frames a second pass.
//!
//! ```text
//!  floor:  guest ─► tap ─► bridge ─► world
//!  buffer: guest ─► [ buffer, an epoch every few milliseconds ] ─► … ─► world
//! ```
//! The guest sends as fast as it can with `WINDOW` frames under way, so that nothing is dropped. Both are measured in turn, and
//! the better of each counts: what disturbs a machine makes figures worse, never better.

use crate::quantiles;
use crate::wire::{self, GUEST, WireError, World, frame};
use aventine_api::{Context, Epoch, Factory, Host, Kind, NetAttachment, NetworkBuffer, PluginError, Side};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a frame.
const LENGTH: usize = 1000;
/// Frames under way at most: what an epoch can hold.
const WINDOW: u64 = 4096;
/// Frames that an epoch holds while its verbs are timed.
const HELD: u64 = 100;
/// Time between two epochs while frames are counted.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long what is due may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often floor and buffer take turns.
const TURNS: u32 = 3;

/// Why a buffer was not measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Nothing to measure on.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No such plugin.
    #[error("There is no network plugin {0}; there are {1}")]
    Unknown(String, String),
    /// The plugin.
    #[error("Plugin {0} failed while {1}")]
    Plugin(String, &'static str, #[source] PluginError),
    /// No directory.
    #[error("Cannot make a directory")]
    Directory(#[source] std::io::Error),
    /// The buffer does not hold what it was given.
    #[error("The buffer holds only {0} of {HELD} frames after {PATIENCE:?}")]
    Held(u64),
    /// Frames did not come.
    #[error("{0} frames did not reach the world in {PATIENCE:?}")]
    Lost(u64),
    /// The thread that measures.
    #[error("Measuring panicked")]
    Panicked,
}

/// What a buffer costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The plugin.
    pub plugin: String,
    /// Time of a `seal` of 100 frames, in microseconds: median and 99 %.
    pub seal_us: [f64; 2],
    /// The same of a `release`.
    pub release_us: [f64; 2],
    /// Frames a second on the way without the buffer.
    pub floor_frames_per_second: f64,
    /// Frames a second that it holds and releases, with an epoch every 5 ms.
    pub frames_per_second: f64,
    /// The second ÷ the first.
    pub ratio: f64,
}

/// Measures a plugin with `epochs` epochs for the verbs and `frames` frames for each count. Blocks; needs root.
pub fn measure(plugin: &str, epochs: u64, frames: u64) -> Result<Figures, BenchError> {
    let [seal_us, release_us] = on_a_wire(Some(plugin), |bench| bench.verbs(epochs))?;
    let (mut floor, mut held) = (0.0, 0.0);
    for _ in 0..TURNS {
        floor = f64::max(floor, on_a_wire(None, |bench| bench.count(frames))?);
        held = f64::max(held, on_a_wire(Some(plugin), |bench| bench.count(frames))?);
    }
    Ok(Figures {
        plugin: plugin.to_owned(),
        seal_us,
        release_us,
        floor_frames_per_second: floor,
        frames_per_second: held,
        ratio: held / floor,
    })
}

/// Makes a guest and a world, with a buffer between them or without one, and measures there.
fn on_a_wire<T: Send>(
    plugin: Option<&str>,
    measure: impl FnOnce(&mut Bench) -> Result<T, BenchError> + Send,
) -> Result<T, BenchError> {
    // The namespace is the thread's, and goes with it.
    thread::scope(|scope| {
        let measuring = scope.spawn(|| measure(&mut Bench::start(plugin)?));
        measuring.join().unwrap_or(Err(BenchError::Panicked))
    })
}

/// The verbs' errors say enough.
struct Deaf;

impl Host for Deaf {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

/// Where a guest's frames go in.
enum Guest {
    Tap(File),
    Socket(UnixStream),
}

impl Guest {
    fn send(&mut self, frame: &[u8]) -> Result<(), WireError> {
        let sent = match self {
            Guest::Tap(tap) => tap.write_all(frame),
            Guest::Socket(socket) => socket.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()),
        };
        sent.map_err(WireError::Frame)
    }
}

struct Bench {
    buffer: Option<(String, Box<dyn NetworkBuffer>)>,
    guest: Guest,
    world: World,
    epoch: u64,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn start(plugin: Option<&str>) -> Result<Bench, BenchError> {
        let (tap, world) = wire::enter()?;
        let dir = tempfile::tempdir().map_err(BenchError::Directory)?;
        let Some(plugin) = plugin else {
            return Ok(Bench { buffer: None, guest: Guest::Tap(tap), world, epoch: 0, _dir: dir });
        };
        // A tap has one user: that may be the buffer itself.
        drop(tap);
        let mut buffer = make(plugin, dir.path())?;
        let guest = match buffer.attachment() {
            NetAttachment::Stream(path) | NetAttachment::Served(path) => {
                Guest::Socket(UnixStream::connect(path).map_err(BenchError::Directory)?)
            }
            NetAttachment::Tap(_) => Guest::Tap(wire::guest()?),
        };
        let engaged = buffer.engage();
        engaged.map_err(|e| BenchError::Plugin(plugin.to_owned(), "beginning to hold", e))?;
        Ok(Bench { buffer: Some((plugin.to_owned(), buffer)), guest, world, epoch: 0, _dir: dir })
    }

    fn buffer(
        &mut self,
        doing: &'static str,
        verb: impl FnOnce(&mut dyn NetworkBuffer, Epoch) -> Result<(), PluginError>,
    ) -> Result<(), BenchError> {
        let epoch = Epoch(self.epoch);
        let Some((plugin, buffer)) = &mut self.buffer else { return Ok(()) };
        verb(buffer.as_mut(), epoch).map_err(|e| BenchError::Plugin(plugin.clone(), doing, e))
    }

    /// How long `seal` and `release` take.
    fn verbs(&mut self, epochs: u64) -> Result<[[f64; 2]; 2], BenchError> {
        let frame = frame(LENGTH);
        let (mut seals, mut releases) = (Vec::new(), Vec::new());
        for _ in 0..epochs {
            self.epoch += 1;
            for _ in 0..HELD {
                self.guest.send(&frame)?;
            }
            let (mut held, deadline) = (0, Instant::now() + PATIENCE);
            while held < HELD {
                if Instant::now() > deadline {
                    return Err(BenchError::Held(held));
                }
                held = self.buffer.as_ref().map_or(HELD, |(_, buffer)| buffer.stats().held_frames);
            }
            let began = Instant::now();
            self.buffer("sealing", |b, epoch| b.seal(epoch))?;
            seals.push(began.elapsed());
            let began = Instant::now();
            self.buffer("releasing", |b, epoch| b.release(epoch))?;
            releases.push(began.elapsed());
            let deadline = Instant::now() + PATIENCE;
            let mut came = 0;
            while came < HELD {
                came += self.world.take()?;
                if Instant::now() > deadline {
                    return Err(BenchError::Lost(HELD - came));
                }
            }
        }
        Ok([quantiles(seals), quantiles(releases)])
    }

    /// Frames a second.
    fn count(&mut self, frames: u64) -> Result<f64, BenchError> {
        let frame = frame(LENGTH);
        let (mut sent, mut came) = (0, 0);
        let began = Instant::now();
        let (mut last, mut heard) = (began, began);
        while came < frames {
            while sent < frames && sent - came < WINDOW {
                self.guest.send(&frame)?;
                sent += 1;
            }
            if last.elapsed() >= INTERVAL {
                self.epoch += 1;
                self.buffer("sealing", |b, epoch| b.seal(epoch))?;
                self.buffer("releasing", |b, epoch| b.release(epoch))?;
                last = Instant::now();
            }
            let now = self.world.take()?;
            if now > 0 {
                (came, heard) = (came + now, Instant::now());
            } else if heard.elapsed() > PATIENCE {
                return Err(BenchError::Lost(sent - came));
            }
        }
        Ok(frames as f64 / began.elapsed().as_secs_f64())
    }
}

fn make(plugin: &str, dir: &Path) -> Result<Box<dyn NetworkBuffer>, BenchError> {
    let entry = aventine_registry::find(Kind::Network, plugin).ok_or_else(|| {
        BenchError::Unknown(plugin.to_owned(), aventine_registry::names(Kind::Network).join(", "))
    })?;
    let context = Context {
        guest: "bench".into(),
        id: "net0".into(),
        side: Side::Primary,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host: Arc::new(Deaf),
    };
    let Factory::Network(make) = entry.factory else { unreachable!("plugins are found by kind") };
    let made = make(&format!("device = '{GUEST}'"), context);
    made.map_err(|e| BenchError::Plugin(plugin.to_owned(), "being set up", e))
}
