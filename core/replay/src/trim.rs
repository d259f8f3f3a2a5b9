//! Makes a small trace of a large one: some epochs of it, and of the memory before them only the pages that they write.
//!
//! ```text
//!  whole:  hello │ every page of the guest │ 1 … from-1 │ from … from+count-1 │ …
//!                          └──── as it was then ────┐                │
//!  small:  hello │ the pages that the epochs write, ┘  as a copy │ 1 … count
//! ```
//! Codecs and policies make of the small trace what they make of the large one. A guest cannot be resumed from it: the rest
//! of its memory is missing.

use crate::image::{Image, LIMIT};
use crate::source::{Part, Source, SourceError};
use aventine_api::{Codec, Epoch, PageRun, PluginError};
use aventine_protocol::{CheckpointEnd, EndReason, FrameHeader, FrameKind, Message};
use aventine_transport_file::Writer;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Compression is worth more than time here: most pages are almost what they were an epoch before.
const LEVEL: i32 = 19;
/// How far back the compression looks, as a power of two: some hundred epochs of the pages.
pub(crate) const WINDOW: u32 = 27;
const CONTROL: u16 = 0;
const PAGES: u16 = 1;
const BATCH: u64 = 256;

/// Why there is no small trace.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// The large one.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its pages.
    #[error("The recorded pages cannot be read")]
    Codec(#[from] PluginError),
    /// Each checkpoint must be readable without the ones before it.
    #[error(
        "The trace was recorded with the codec {0}, whose epochs need the ones before them; record with `raw`"
    )]
    NotRaw(String),
    /// It ends too soon.
    #[error("The trace holds {found} of the {count} epochs from epoch {from} on")]
    TooShort {
        /// The first one wanted.
        from: Epoch,
        /// How many are wanted.
        count: u64,
        /// How many there are.
        found: u64,
    },
    /// The small one.
    #[error("Cannot write {}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes `count` epochs of `trace`, from the epoch `from` on, to `small`, compressed by zstd. `raw` is a codec of the kind that
/// the trace was recorded with. Blocks for as long as reading the trace twice takes.
pub fn trim(
    trace: &Path,
    (from, count): (Epoch, u64),
    raw: &mut dyn Codec,
    small: &Path,
) -> Result<(), TrimError> {
    let (before, found) = before(trace, (from, count), raw)?;
    if found < count {
        return Err(TrimError::TooShort { from, count, found });
    }
    let failed = |source| TrimError::Write { path: small.to_owned(), source };
    let mut zstd = zstd::Encoder::new(File::create(small).map_err(failed)?, LEVEL).map_err(failed)?;
    zstd.long_distance_matching(true).and_then(|()| zstd.window_log(WINDOW)).map_err(failed)?;
    let writer = Writer::new(zstd).map_err(failed)?;
    let mut out = Out { writer, sequence: [0; 2], at: Duration::ZERO };
    copy_epochs(trace, (from, count), &before, raw, &mut out)?.map_err(failed)?;
    let file = out.writer.into_inner().finish().map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// The memory before epoch `from`, with those pages marked that the wanted epochs write; and how many of these there are.
fn before(trace: &Path, (from, count): (Epoch, u64), raw: &mut dyn Codec) -> Result<(Image, u64), TrimError> {
    let mut source = Source::open(trace)?;
    if !source.codec.starts_with("raw ") {
        return Err(TrimError::NotRaw(source.codec));
    }
    let (mut image, mut wanted, mut found) = (Image::new(), Image::new(), 0);
    while found < count
        && let Some(part) = source.next_part()?
    {
        match part {
            Part::Pages(epoch, payload) => {
                raw.check(&payload, LIMIT)?;
                raw.decode(&payload, if epoch < from { &mut image } else { &mut wanted })?;
            }
            Part::End { epoch, .. } => found += u64::from(epoch >= from),
            Part::State(..) => {}
        }
    }
    image.written = wanted.written;
    Ok((image, found))
}

/// The second reading. The outer error is the trace's, the inner one that of the file that is written.
fn copy_epochs(
    trace: &Path,
    (from, count): (Epoch, u64),
    before: &Image,
    raw: &mut dyn Codec,
    out: &mut Out<impl Write>,
) -> Result<io::Result<()>, TrimError> {
    let mut source = Source::open(trace)?;
    let begun = out.begin(&source.hello);
    let copied = begun.and_then(|()| out.copy(before, raw));
    if let Err(error) = copied {
        return Ok(Err(error));
    }
    let number = |epoch: Epoch| Epoch(epoch.0 - from.0 + 1);
    let mut first = None;
    while let Some(part) = source.next_part()? {
        let written = match part {
            Part::Pages(epoch, payload) if epoch >= from => {
                out.frame(PAGES, FrameKind::Pages, number(epoch), &payload)
            }
            Part::State(epoch, state) if epoch >= from => {
                out.frame(PAGES, FrameKind::State, number(epoch), &state)
            }
            Part::End { epoch, at, end } if epoch >= from => {
                out.at = at.saturating_sub(*first.get_or_insert(at));
                // A standby that is fed with it must never run it.
                let end = CheckpointEnd { armed: false, ..end };
                let ended = out.frame(PAGES, FrameKind::CheckpointEnd, number(epoch), &end.encode());
                if number(epoch).0 == count {
                    let message = Message::End(EndReason::Stopped).encode();
                    return Ok(
                        ended.and_then(|()| out.frame(CONTROL, FrameKind::Message, Epoch::COPY, &message))
                    );
                }
                ended
            }
            _ => Ok(()),
        };
        if written.is_err() {
            return Ok(written);
        }
    }
    Ok(Ok(()))
}

/// The small trace.
struct Out<W> {
    writer: Writer<W>,
    sequence: [u32; 2],
    at: Duration,
}

impl<W: Write> Out<W> {
    fn begin(&mut self, hello: &Message) -> io::Result<()> {
        self.writer.channel(CONTROL, "control")?;
        self.writer.channel(PAGES, "pages")?;
        self.frame(CONTROL, FrameKind::Message, Epoch::COPY, &hello.encode())
    }

    /// Pages that were never written are zeros, which a copy leaves out.
    fn copy(&mut self, image: &Image, raw: &mut dyn Codec) -> io::Result<()> {
        for batch in image.batches(BATCH) {
            let runs: Vec<PageRun<'_>> = batch.into_iter().filter(|run| !run.data.is_empty()).collect();
            let mut payload = Vec::new();
            raw.encode(Epoch::COPY, &runs, &mut payload).map_err(|e| io::Error::other(e.chain()))?;
            let payload = payload.concat();
            self.frame(PAGES, FrameKind::Pages, Epoch::COPY, &payload)?;
        }
        Ok(())
    }

    fn frame(&mut self, channel: u16, kind: FrameKind, epoch: Epoch, payload: &[u8]) -> io::Result<()> {
        let sequence = &mut self.sequence[usize::from(channel)];
        let header = FrameHeader::of(kind, 0, epoch, *sequence, &[payload]);
        *sequence += 1;
        self.writer.bytes(channel, self.at, &[&header.encode(), payload])
    }
}
