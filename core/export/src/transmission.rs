//! The transmission: requests of one connection, in order, each answered with one write.

use crate::handshake::Agreed;
use crate::protocol::{
    CHUNK_MAGIC, Errno, MAX_REQUEST, REQUEST_HEAD, Request, SIMPLE_REPLY_MAGIC, chunk, command, flag,
};
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use std::io::{self, Read, Write};

/// Why a connection was ended from this side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransmissionError {
    #[error("The client sent something that is not a request")]
    Magic,
    #[error("The client sent a write of {0} bytes; the limit is {MAX_REQUEST}")]
    TooLong(u32),
    #[error("The connection failed")]
    Io(#[from] io::Error),
}

const SIMPLE_HEAD: usize = 16;
const CHUNK_HEAD: usize = 20;
/// A data chunk's head and the offset behind it.
const DATA_HEAD: usize = CHUNK_HEAD + 8;
/// Longest text of an error in a structured reply.
const MAX_TEXT: usize = 1024;

/// Serves requests until the client disconnects.
pub(crate) fn serve(
    input: &mut impl Read,
    output: &mut impl Write,
    device: &dyn BlockDevice,
    agreed: Agreed,
) -> Result<(), TransmissionError> {
    let mut session = Session { device, structured: agreed.structured, buffer: Vec::new() };
    let mut head = [0; REQUEST_HEAD];
    while read_head(input, &mut head)? {
        let request = Request::parse(&head).ok_or(TransmissionError::Magic)?;
        match request.command {
            command::DISC => break,
            command::READ => session.read(&request, output)?,
            command::WRITE => {
                if request.length > MAX_REQUEST {
                    return Err(TransmissionError::TooLong(request.length));
                }
                input.read_exact(session.room(request.length as usize))?;
                let done = session.write(&request);
                simple_reply(&request, done, output)?;
            }
            _ => {
                let done = session.other(&request);
                simple_reply(&request, done, output)?;
            }
        }
    }
    Ok(())
}

/// Whether there is another request: `false` when the client closed the connection between two.
fn read_head(input: &mut impl Read, head: &mut [u8; REQUEST_HEAD]) -> io::Result<bool> {
    loop {
        match input.read(&mut head[..1]) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    input.read_exact(&mut head[1..])?;
    Ok(true)
}

/// Why a request failed, as the client is told.
struct Failure {
    errno: Errno,
    text: String,
}

impl Failure {
    fn new(errno: Errno, text: &str) -> Failure {
        Failure { errno, text: text.to_owned() }
    }
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Failure {
        let errno = match error.code() {
            ErrorCode::Refused => Errno::Perm,
            // A full disk too: told that there is no space, QEMU stops the guest until somebody tells it to go on.
            _ => Errno::Io,
        };
        let text = error.chain();
        tracing::warn!(error = text, "the disk failed a request of the guest");
        Failure { errno, text }
    }
}

struct Session<'a> {
    device: &'a dyn BlockDevice,
    structured: bool,
    /// The data of a write or a whole reply to a read. Only ever grows, to the longest request so far.
    buffer: Vec<u8>,
}

impl Session<'_> {
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        &mut self.buffer[..len]
    }

    fn read(&mut self, request: &Request, output: &mut impl Write) -> io::Result<()> {
        let len = request.length as usize;
        let done = if request.length > MAX_REQUEST {
            Err(Failure::new(Errno::Overflow, "The read is longer than the largest block size"))
        } else {
            check(request, flag::FUA | flag::DF)
                .and_then(|()| self.check_range(request, Errno::Inval))
                .and_then(|()| self.read_into_reply(request))
        };
        match done {
            Err(failure) if self.structured => error_chunk(request, &failure, output),
            Err(failure) => simple_reply(request, Err(failure), output),
            Ok(()) if self.structured && len == 0 => output.write_all(&chunk_head(request, chunk::NONE, 0)),
            Ok(()) => output.write_all(&self.buffer[..self.data_head() + len]),
        }
    }

    /// Puts the data where it belongs in the reply, and the head before it.
    fn read_into_reply(&mut self, request: &Request) -> Result<(), Failure> {
        let (device, structured, head) = (self.device, self.structured, self.data_head());
        let reply = self.room(head + request.length as usize);
        let (head, data) = reply.split_at_mut(head);
        if !data.is_empty() {
            device.read(request.offset, data)?;
        }
        if structured {
            let length = 8 + request.length;
            head[..CHUNK_HEAD].copy_from_slice(&chunk_head(request, chunk::OFFSET_DATA, length));
            head[CHUNK_HEAD..].copy_from_slice(&request.offset.to_be_bytes());
        } else {
            head.copy_from_slice(&simple_head(request, 0));
        }
        Ok(())
    }

    fn data_head(&self) -> usize {
        if self.structured { DATA_HEAD } else { SIMPLE_HEAD }
    }

    fn write(&mut self, request: &Request) -> Result<(), Failure> {
        check(request, flag::FUA)?;
        self.check_range(request, Errno::NoSpace)?;
        let data = &self.buffer[..request.length as usize];
        if !data.is_empty() {
            self.device.write(request.offset, data, request.has(flag::FUA))?;
        }
        Ok(())
    }

    fn other(&mut self, request: &Request) -> Result<(), Failure> {
        let fua = request.has(flag::FUA);
        let len = u64::from(request.length);
        match request.command {
            command::FLUSH => {
                check(request, flag::FUA)?;
                self.device.flush()?;
            }
            command::TRIM => {
                check(request, flag::FUA)?;
                self.check_range(request, Errno::Inval)?;
                if len > 0 {
                    self.device.trim(request.offset, len)?;
                }
                if fua {
                    self.device.flush()?;
                }
            }
            command::WRITE_ZEROES => {
                check(request, flag::FUA | flag::NO_HOLE)?;
                self.check_range(request, Errno::NoSpace)?;
                if len > 0 {
                    self.device.write_zeroes(request.offset, len, !request.has(flag::NO_HOLE), fua)?;
                }
            }
            _ => return Err(Failure::new(Errno::Inval, "Unknown request")),
        }
        Ok(())
    }

    fn check_range(&self, request: &Request, errno: Errno) -> Result<(), Failure> {
        match request.offset.checked_add(u64::from(request.length)) {
            Some(end) if end <= self.device.size() => Ok(()),
            _ => Err(Failure::new(errno, "The request reaches past the end of the disk")),
        }
    }
}

fn check(request: &Request, allowed: u16) -> Result<(), Failure> {
    if request.flags & !allowed == 0 {
        return Ok(());
    }
    Err(Failure::new(Errno::Inval, "The request has a flag that does not go with it"))
}

fn simple_head(request: &Request, error: u32) -> [u8; SIMPLE_HEAD] {
    let mut head = [0; SIMPLE_HEAD];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&request.cookie.to_be_bytes());
    head
}

fn simple_reply(request: &Request, done: Result<(), Failure>, output: &mut impl Write) -> io::Result<()> {
    output.write_all(&simple_head(request, done.map_or_else(|f| f.errno as u32, |()| 0)))
}

/// The head of the only chunk of a reply.
fn chunk_head(request: &Request, kind: u16, length: u32) -> [u8; CHUNK_HEAD] {
    let mut head = [0; CHUNK_HEAD];
    head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&chunk::DONE.to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    head[16..].copy_from_slice(&length.to_be_bytes());
    head
}

fn error_chunk(request: &Request, failure: &Failure, output: &mut impl Write) -> io::Result<()> {
    let text = text_of(failure);
    let mut reply = chunk_head(request, chunk::ERROR, 6 + text.len() as u32).to_vec();
    reply.extend((failure.errno as u32).to_be_bytes());
    reply.extend((text.len() as u16).to_be_bytes());
    reply.extend(text.as_bytes());
    output.write_all(&reply)
}

/// At most [`MAX_TEXT`] bytes of the failure's text, cut between two characters.
fn text_of(failure: &Failure) -> &str {
    let end = (0..=MAX_TEXT.min(failure.text.len())).rev().find(|&i| failure.text.is_char_boundary(i));
    &failure.text[..end.unwrap_or(0)]
}
