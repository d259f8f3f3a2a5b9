//! A trace as what a standby can be fed with.

use crate::source::{Plain, SourceError, frame, open};
use aventine_engine::{Recorded, RecordedFrame, RecordedFrames, RecordingError};
use aventine_protocol::{EndReason, Hello, Message};
use aventine_transport_file::Entry;
use std::path::{Path, PathBuf};

/// A trace that holds a whole session from its beginning.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    hello: Hello,
    end: Option<EndReason>,
    channels: Vec<String>,
}

impl Trace {
    /// Reads through the trace at `path`.
    pub fn open(path: &Path) -> Result<Trace, SourceError> {
        let (mut hello, mut end, mut channels, mut control) = (None, None, Vec::new(), None);
        let mut reader = open(path)?;
        while let Some(entry) = next(&mut reader, path)? {
            match entry {
                Entry::Channel { number, name } if name == "control" => control = Some(number),
                Entry::Channel { name, .. } => channels.push(name),
                Entry::Bytes { channel, bytes, .. } if Some(channel) == control => {
                    match Message::decode(frame(&bytes)?.1)? {
                        Message::Hello(said) => hello = Some(said),
                        Message::End(reason) => end = Some(reason),
                        _ => {}
                    }
                }
                Entry::Bytes { .. } => {}
            }
        }
        let hello = hello.ok_or(SourceError::NoSession)?;
        Ok(Trace { path: path.to_owned(), hello, end, channels })
    }
}

fn next(reader: &mut Plain, path: &Path) -> Result<Option<Entry>, SourceError> {
    reader.next_entry().map_err(|source| SourceError::Trace { path: path.to_owned(), source })
}

impl Recorded for Trace {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn end(&self) -> Option<EndReason> {
        self.end.clone()
    }

    fn channels(&self) -> &[String] {
        &self.channels
    }

    fn frames(&self, channel: &str) -> Result<RecordedFrames, RecordingError> {
        let frames = Frames {
            reader: open(&self.path)?,
            path: self.path.clone(),
            channel: channel.to_owned(),
            number: None,
        };
        Ok(Box::new(frames))
    }
}

/// The frames of one channel.
struct Frames {
    reader: Plain,
    path: PathBuf,
    channel: String,
    number: Option<u16>,
}

impl Frames {
    fn next_frame(&mut self) -> Result<Option<RecordedFrame>, SourceError> {
        while let Some(entry) = next(&mut self.reader, &self.path)? {
            match entry {
                Entry::Channel { number, name } if name == self.channel => self.number = Some(number),
                Entry::Bytes { channel, bytes, .. } if Some(channel) == self.number => {
                    let (header, payload) = frame(&bytes)?;
                    let (kind, sub, epoch) = (header.kind, header.sub, header.epoch);
                    return Ok(Some(RecordedFrame { kind, sub, epoch, payload: payload.to_vec() }));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Iterator for Frames {
    type Item = Result<RecordedFrame, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().map_err(RecordingError::from).transpose()
    }
}
