//! The file: what went over which channel, when.
//!
//! ```text
//!  "AVTRACE1"
//!  1  number (2)  length (1)  name                              a channel
//!  2  number (2)  nanoseconds since the first entry (8)  length (4)  bytes    what one call sent
//! ```
//! Numbers are little-endian.

use std::io::{self, IoSlice, Read, Write};
use std::time::Duration;

const MAGIC: &[u8; 8] = b"AVTRACE1";
const CHANNEL: u8 = 1;
const BYTES: u8 = 2;
/// Most bytes of one entry: more than any frame.
const LIMIT: u32 = 128 << 20;

/// Writes a trace.
pub struct Writer<W> {
    file: W,
}

impl<W: Write> Writer<W> {
    /// Writes the beginning.
    pub fn new(mut file: W) -> io::Result<Writer<W>> {
        file.write_all(MAGIC)?;
        Ok(Writer { file })
    }

    /// What it has written to.
    pub fn into_inner(self) -> W {
        self.file
    }

    /// A channel was opened.
    pub fn channel(&mut self, number: u16, name: &str) -> io::Result<()> {
        let length = u8::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let [low, high] = number.to_le_bytes();
        self.file.write_all(&[&[CHANNEL, low, high, length], name.as_bytes()].concat())
    }

    /// One call sent `parts`, `at` after the start of the recording.
    pub fn bytes(&mut self, channel: u16, at: Duration, parts: &[&[u8]]) -> io::Result<()> {
        let length = parts.iter().map(|p| p.len()).sum::<usize>();
        let length = u32::try_from(length).ok().filter(|l| *l <= LIMIT).ok_or(io::ErrorKind::InvalidInput)?;
        let mut head = Vec::with_capacity(15);
        head.push(BYTES);
        head.extend(channel.to_le_bytes());
        head.extend((at.as_nanos() as u64).to_le_bytes());
        head.extend(length.to_le_bytes());
        let mut slices = [&head[..]].iter().chain(parts).map(|p| IoSlice::new(p)).collect::<Vec<_>>();
        write_all(&mut self.file, &mut slices)
    }
}

fn write_all(file: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    /// Most slices that one call takes.
    const MOST: usize = 1024;
    // Empty ones in front would look like the end of the file.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(&slices[..slices.len().min(MOST)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a trace says.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// A channel was opened.
    Channel {
        /// Its number in this trace.
        number: u16,
        /// Its name.
        name: String,
    },
    /// Bytes were sent.
    Bytes {
        /// On which channel.
        channel: u16,
        /// When, from the start of the recording.
        at: Duration,
        /// All that one call sent.
        bytes: Vec<u8>,
    },
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read.
    #[error("Cannot read the trace")]
    Read(#[from] io::Error),
    /// Something else.
    #[error("This is no trace: it does not begin with {}", MAGIC.escape_ascii())]
    NoTrace,
    /// Damage.
    #[error("The trace is damaged at byte {0}")]
    Damaged(u64),
}

/// Reads a trace.
pub struct Reader<R> {
    file: R,
    at: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning.
    pub fn new(mut file: R) -> Result<Reader<R>, TraceError> {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(TraceError::NoTrace),
            read => read?,
        }
        if magic != *MAGIC {
            return Err(TraceError::NoTrace);
        }
        Ok(Reader { file, at: MAGIC.len() as u64 })
    }

    /// The next entry; `None` at the end. An entry that was not written to its end is none.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TraceError> {
        let start = self.at;
        let Some([kind, low, high]) = self.array()? else { return Ok(None) };
        let number = u16::from_le_bytes([low, high]);
        match kind {
            CHANNEL => {
                let Some([length]) = self.array()? else { return Ok(None) };
                let Some(name) = self.exactly(length.into())? else { return Ok(None) };
                let name = String::from_utf8(name).map_err(|_| TraceError::Damaged(start))?;
                Ok(Some(Entry::Channel { number, name }))
            }
            BYTES => {
                let Some(at) = self.array()? else { return Ok(None) };
                let at = Duration::from_nanos(u64::from_le_bytes(at));
                let Some(length) = self.array()? else { return Ok(None) };
                let length = u32::from_le_bytes(length);
                if length > LIMIT {
                    return Err(TraceError::Damaged(start));
                }
                let bytes = self.exactly(length.into())?;
                Ok(bytes.map(|bytes| Entry::Bytes { channel: number, at, bytes }))
            }
            _ => Err(TraceError::Damaged(start)),
        }
    }

    fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        Ok(self.exactly(N as u64)?.and_then(|bytes| bytes.try_into().ok()))
    }

    /// The next bytes, all of them or none. Memory is taken for what is there, not for what a length says.
    fn exactly(&mut self, length: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        self.file.by_ref().take(length).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(Some(bytes).filter(|b| b.len() as u64 == length))
    }
}
