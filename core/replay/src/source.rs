//! The checkpoints of a trace.

use crate::trim::WINDOW;
use aventine_api::Epoch;
use aventine_protocol::{
    CheckpointEnd, FrameError, FrameHeader, FrameKind, HEADER_LEN, Message, MessageError,
};
use aventine_transport_file::{Entry, Reader, TraceError};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No file.
    #[error("Cannot open {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A damaged or foreign file.
    #[error("{} cannot be read as a trace", path.display())]
    Trace {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: TraceError,
    },
    /// A frame in it is damaged, or of another version of this program.
    #[error("A frame in the trace is damaged, or was recorded by another version")]
    Frame(#[from] FrameError),
    /// A message in it makes no sense.
    #[error("A message in the trace makes no sense")]
    Message(#[from] MessageError),
    /// Something that is not one frame.
    #[error("The trace holds {0} bytes where a frame should be")]
    NoFrame(usize),
    /// No session.
    #[error("The trace does not say with which codec it was recorded: it is empty or cut short")]
    NoSession,
}

/// A part of what was recorded.
pub(crate) enum Part {
    /// Encoded pages of an epoch.
    Pages(Epoch, Vec<u8>),
    /// The guest's device state in an epoch.
    State(Epoch, Vec<u8>),
    /// The end of a checkpoint.
    End {
        /// Which one.
        epoch: Epoch,
        /// When it was sent.
        at: Duration,
        /// What was sent.
        end: CheckpointEnd,
    },
}

/// A trace that is read, whether it is compressed or not.
pub(crate) type Plain = Reader<Box<dyn Read>>;

/// Reads a trace from its beginning.
pub(crate) struct Source {
    path: PathBuf,
    reader: Plain,
    pages: Option<u16>,
    /// The codec that it was recorded with: name and version.
    pub(crate) codec: String,
    /// What the recorded primary said at first.
    pub(crate) hello: Message,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source, SourceError> {
        let reader = open(path)?;
        let mut source = Source {
            path: path.to_owned(),
            reader,
            pages: None,
            codec: String::new(),
            hello: Message::Heartbeat,
        };
        let (mut control, mut pages) = (None, None);
        loop {
            match source.entry()?.ok_or(SourceError::NoSession)? {
                Entry::Channel { number, name } if name == "control" => control = Some(number),
                Entry::Channel { number, name } if name == "pages" => pages = Some(number),
                Entry::Bytes { channel, bytes, .. } if Some(channel) == control => {
                    let (_, payload) = frame(&bytes)?;
                    if let Message::Hello(hello) = Message::decode(payload)? {
                        let codec = hello.signature.iter().find(|(name, _)| name == "codec");
                        source.codec = codec.map(|(_, value)| value.clone()).ok_or(SourceError::NoSession)?;
                        (source.hello, source.pages) = (Message::Hello(hello), pages);
                        return Ok(source);
                    }
                }
                _ => {}
            }
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, SourceError> {
        let path = &self.path;
        self.reader.next_entry().map_err(|source| SourceError::Trace { path: path.clone(), source })
    }

    /// The next part; `None` at the end.
    pub(crate) fn next_part(&mut self) -> Result<Option<Part>, SourceError> {
        loop {
            match self.entry()? {
                None => return Ok(None),
                Some(Entry::Channel { number, name }) if name == "pages" => self.pages = Some(number),
                Some(Entry::Bytes { channel, at, bytes }) if Some(channel) == self.pages => {
                    let (header, payload) = frame(&bytes)?;
                    match header.kind {
                        FrameKind::Pages => return Ok(Some(Part::Pages(header.epoch, payload.to_vec()))),
                        FrameKind::State => return Ok(Some(Part::State(header.epoch, payload.to_vec()))),
                        FrameKind::CheckpointEnd => {
                            let (epoch, end) = (header.epoch, CheckpointEnd::decode(payload)?);
                            return Ok(Some(Part::End { epoch, at, end }));
                        }
                        _ => {}
                    }
                }
                Some(_) => {}
            }
        }
    }
}

/// Opens the trace at `path`.
pub(crate) fn open(path: &Path) -> Result<Plain, SourceError> {
    let open = |source| SourceError::Open { path: path.to_owned(), source };
    let file = plain(File::open(path).map_err(open)?).map_err(open)?;
    Reader::new(file).map_err(|source| SourceError::Trace { path: path.to_owned(), source })
}

/// The trace itself, which may be compressed.
fn plain(file: File) -> io::Result<Box<dyn Read>> {
    const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
    let mut file = BufReader::with_capacity(1 << 20, file);
    if !file.fill_buf()?.starts_with(&ZSTD) {
        return Ok(Box::new(file));
    }
    let mut zstd = zstd::Decoder::with_buffer(file)?;
    zstd.window_log_max(WINDOW)?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, zstd)))
}

/// What one call sent: a frame.
pub(crate) fn frame(bytes: &[u8]) -> Result<(FrameHeader, &[u8]), SourceError> {
    let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(SourceError::NoFrame(bytes.len()))?;
    // A trace may be a part of what was recorded: frames count on from where they were.
    let sequence = u32::from_le_bytes(head[20..24].try_into().unwrap_or_default());
    let header = FrameHeader::decode(head, sequence)?;
    header.verify(payload)?;
    Ok((header, payload))
}
