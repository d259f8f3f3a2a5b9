//! Replay: tries codecs and epoch policies on a recorded guest, without one.
//!
//! ```text
//!  trace ─► recorded codec ─► image ── the policy ends an epoch ─► codec under test ─► bytes ─► and back ─► copy
//!             decode            │                                     encode                    decode       │
//!                               └────────────────────────── the same at the end ─────────────────────────────┘
//! ```
//! A trace holds the guest's checkpoints, each with its time. They are the grains: a replayed epoch ends with the first of them
//! at or after the time that the policy asks for, and holds each page that they wrote once. So a trace that was recorded
//! with short epochs can tell what longer ones cost.
//!
//! Invariant: figures are only given for a codec that brought back every page as it was.
#![forbid(unsafe_code)]

mod image;
mod source;
mod trace;
mod trim;

pub use source::SourceError;
pub use trace::Trace;
pub use trim::{TrimError, trim};

use aventine_api::{Codec, Epoch, EpochPolicy, EpochStats, PAGE_SIZE, PluginError};
use image::{Image, LIMIT};
use serde::Serialize;
use source::{Part, Source};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages of one batch, as the engine sends them.
const BATCH: u64 = 256;

/// Why a trace could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The trace.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The recorded pages.
    #[error("The recorded pages cannot be decoded")]
    Recorded(#[source] PluginError),
    /// The codec under test.
    #[error("The codec failed at {doing} epoch {epoch}")]
    Codec {
        /// What it did.
        doing: &'static str,
        /// Which epoch of the replay.
        epoch: Epoch,
        /// Why.
        source: PluginError,
    },
    /// It lost something.
    #[error("The codec did not bring back page {0} as it was")]
    Differs(u64),
}

/// What a codec and a policy made of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Epochs that the policy made of the recorded ones.
    pub epochs: u64,
    /// Epochs that the trace holds.
    pub recorded_epochs: u64,
    /// Time that they cover.
    pub seconds: f64,
    /// Pages sent in checkpoints.
    pub pages: u64,
    /// Bytes that the codec made of them.
    pub bytes: u64,
    /// Bytes of the pages ÷ bytes that the codec made of them.
    pub ratio: f64,
    /// Pages of the initial copy, if the trace has one.
    pub copy_pages: u64,
    /// Bytes that the codec made of those.
    pub copy_bytes: u64,
    /// Time that the codec took to encode a page, on average.
    pub encode_us_per_page: f64,
    /// To check and decode one.
    pub decode_us_per_page: f64,
}

/// The recorded guest's time, for the plugins of a replay.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// Time since the start of the recording.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// The codec that a trace was recorded with: name and version.
pub fn recorded_codec(trace: &Path) -> Result<String, SourceError> {
    Source::open(trace).map(|source| source.codec)
}

/// Replays a trace. `recorded` is a codec of the kind that it was recorded with; The other two are of the one under
/// test: a link's two ends. `clock` shows the recorded guest's time. Blocks as long as they need, not as long as the recording was.
pub fn replay(
    trace: &Path,
    recorded: &mut dyn Codec,
    [encoder, decoder]: [Box<dyn Codec>; 2],
    policy: &mut dyn EpochPolicy,
    clock: &Clock,
) -> Result<Figures, ReplayError> {
    let mut source = Source::open(trace)?;
    let mut run =
        Run { encoder, decoder, copy: Image::new(), figures: Figures::default(), time: [Duration::ZERO; 2] };
    let mut image = Image::new();
    let (mut first, mut last, mut due) = (None, Duration::ZERO, Duration::ZERO);
    while let Some(part) = source.next_part()? {
        match part {
            Part::Pages(epoch, payload) => {
                recorded.check(&payload, LIMIT).map_err(ReplayError::Recorded)?;
                recorded.decode(&payload, &mut image).map_err(ReplayError::Recorded)?;
                if epoch == Epoch::COPY {
                    run.send(Epoch::COPY, &mut image)?;
                }
            }
            Part::State(..) => {}
            Part::End { at, .. } => {
                clock.0.store(at.as_nanos() as u64, Ordering::Relaxed);
                run.figures.recorded_epochs += 1;
                last = at;
                if first.is_none() {
                    (first, due) = (Some(at), at);
                }
                if at >= due {
                    due = at + run.epoch(&mut image, policy)?;
                }
            }
        }
    }
    // What the last epoch would have held, had the recording gone on, is no epoch; the images must agree all the same.
    let epoch = Epoch(run.figures.epochs + 1);
    let kept = run.figures.clone();
    run.send(epoch, &mut image)?;
    if let Some(page) = image.difference(&run.copy) {
        return Err(ReplayError::Differs(page));
    }
    Ok(run.finish(kept, last.saturating_sub(first.unwrap_or(last))))
}

/// A codec at work on both ends of a link.
struct Run {
    encoder: Box<dyn Codec>,
    decoder: Box<dyn Codec>,
    copy: Image,
    figures: Figures,
    /// To encode, to decode.
    time: [Duration; 2],
}

impl Run {
    /// One epoch; answers how long the policy wants the next to be.
    fn epoch(&mut self, image: &mut Image, policy: &mut dyn EpochPolicy) -> Result<Duration, ReplayError> {
        self.figures.epochs += 1;
        let dirty_pages = image.written.count();
        let encoding = self.time[0];
        self.send(Epoch(self.figures.epochs), image)?;
        let commit = self.time[0] - encoding;
        Ok(policy.interval(&EpochStats { pause: Duration::ZERO, dirty_pages, in_flight: 0, commit }))
    }

    /// Brings what was written to the copy.
    fn send(&mut self, epoch: Epoch, image: &mut Image) -> Result<(), ReplayError> {
        let failed = |doing| move |source| ReplayError::Codec { doing, epoch, source };
        for batch in image.batches(BATCH) {
            let mut payload = Vec::new();
            let began = Instant::now();
            self.encoder.encode(epoch, &batch, &mut payload).map_err(failed("encoding"))?;
            self.time[0] += began.elapsed();
            let payload = payload.concat();
            let began = Instant::now();
            let pages = self.decoder.check(&payload, LIMIT).map_err(failed("checking"))?;
            self.decoder.decode(&payload, &mut self.copy).map_err(failed("decoding"))?;
            self.time[1] += began.elapsed();
            let figures = &mut self.figures;
            let (all_pages, bytes) = match epoch {
                Epoch::COPY => (&mut figures.copy_pages, &mut figures.copy_bytes),
                _ => (&mut figures.pages, &mut figures.bytes),
            };
            (*all_pages, *bytes) = (*all_pages + pages, *bytes + payload.len() as u64);
        }
        image.written.clear();
        Ok(())
    }

    fn finish(self, figures: Figures, time: Duration) -> Figures {
        let sent = (self.figures.pages + self.figures.copy_pages).max(1) as f64;
        let [encode_us_per_page, decode_us_per_page] = self.time.map(|t| t.as_secs_f64() * 1e6 / sent);
        let ratio = (figures.pages * PAGE_SIZE as u64) as f64 / figures.bytes.max(1) as f64;
        Figures { seconds: time.as_secs_f64(), ratio, encode_us_per_page, decode_us_per_page, ..figures }
    }
}

#[cfg(test)]
mod tests;
