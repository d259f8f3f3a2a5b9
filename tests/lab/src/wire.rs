//! What a lab host's agent and the test tell each other: frames on one byte stream each way.
//!
//! ```text
//! 0        4      5          9
//! ┌────────┬──────┬──────────┬───────────┐
//! │ number │ kind │ length n │ n bytes   │   integers little-endian
//! └────────┴──────┴──────────┴───────────┘
//! test ─► agent   Start (words)   Input (empty: the end)   Kill   Put (words)
//! agent ─► test   Ready   Output   Errors   Ended (wait status: 4 bytes)   Failed (text)
//! ```
//! The number is the process's, chosen by the test. Words are strings of bytes, each after its length. Both ends are this
//! repository's, at the same version: a frame that makes no sense is an error and nothing more.

use std::io::{self, ErrorKind, Read, Write};

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The agent is there.
    Ready,
    /// Words: directory, program, number of arguments, the arguments, then `NAME=VALUE` for the environment.
    Start,
    /// For standard input.
    Input,
    /// End the process and those of its group.
    Kill,
    /// Words: path, permissions in octal, contents. Answered like a process that ends.
    Put,
    /// From standard output.
    Output,
    /// From standard error.
    Errors,
    /// The process has ended and its output was closed.
    Ended,
    /// It could not be done.
    Failed,
}

const KINDS: [Kind; 9] = [
    Kind::Ready,
    Kind::Start,
    Kind::Input,
    Kind::Kill,
    Kind::Put,
    Kind::Output,
    Kind::Errors,
    Kind::Ended,
    Kind::Failed,
];
const HEADER: usize = 9;
/// Most bytes of a frame.
const LONGEST: usize = 64 << 20;

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
}

/// Sends a frame, in one write where the stream allows it.
pub(crate) fn send(mut stream: impl Write, number: u32, kind: Kind, payload: &[u8]) -> io::Result<()> {
    if payload.len() > LONGEST {
        return Err(io::Error::new(ErrorKind::InvalidInput, "too long for the lab"));
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(number.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Receives a frame. Blocks.
pub(crate) fn receive(mut stream: impl Read) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    let kind = KINDS.get(usize::from(kind)).copied();
    let kind = kind.filter(|_| length <= LONGEST).ok_or(ErrorKind::InvalidData)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(Frame { number: u32::from_le_bytes([a, b, c, d]), kind, payload })
}

/// Packs words: for the test.
#[allow(dead_code, reason = "each end has its own half")]
pub(crate) fn pack<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Vec<u8> {
    let mut packed = Vec::new();
    for word in words {
        packed.extend((word.len() as u32).to_le_bytes());
        packed.extend(word);
    }
    packed
}

/// Unpacks words: for the agent. `None` if these are none.
#[allow(dead_code, reason = "each end has its own half")]
pub(crate) fn unpack(mut packed: &[u8]) -> Option<Vec<&[u8]>> {
    let mut words = Vec::new();
    while let Some((length, rest)) = packed.split_first_chunk() {
        let (word, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        words.push(word);
        packed = rest;
    }
    packed.is_empty().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_words_come_back_as_they_were() {
        let mut stream = Vec::new();
        let words: [&[u8]; 3] = [b"one", b"", b"three\n"];
        send(&mut stream, 7, Kind::Put, &pack(words)).unwrap();
        send(&mut stream, 8, Kind::Ended, &[]).unwrap();
        let mut stream = stream.as_slice();
        let first = receive(&mut stream).unwrap();
        assert_eq!((first.number, first.kind), (7, Kind::Put));
        assert_eq!(unpack(&first.payload).unwrap(), words);
        let second = receive(&mut stream).unwrap();
        assert_eq!(second, Frame { number: 8, kind: Kind::Ended, payload: Vec::new() });
        assert_eq!(receive(&mut stream).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        assert_eq!(unpack(&[3, 0, 0, 0, b'a']), None);
        assert_eq!(unpack(&[0, 0]), None);
        assert_eq!(receive(&[0, 0, 0, 0, 99, 0, 0, 0, 0][..]).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(receive(&[0, 0, 0, 0, 1, 0, 0, 0, 255][..]).unwrap_err().kind(), ErrorKind::InvalidData);
        for (at, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
    }
}
