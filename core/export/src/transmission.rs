//! The transmission: requests of one connection, each answered with one write.
//!
//! ```text
//!            ┌───────────── as long as the device is fast: the leader stays the leader ────────────┐
//!            ▼                                                                                     │
//!  follower ─► leader: reads a request ─┬─► carries it out, replies ────────────────────────────────┘
//!     ▲                                 └─► leaves the lead to a follower, carries it out, replies ─┐
//!     └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Invariants:
//! - One thread at a time reads requests. Up to [`MAX_THREADS`] carry out as many; replies come as they end.
//! - Threads are handed the lead only where the device makes the reader wait: a request that memory answers costs less than
//!   waking another thread.
//! - A flush covers the writes that were answered before it was sent: those the device has carried out.
//! - Data of at most [`MAX_REQUEST`] bytes are under way; the reader waits for room before it takes more.

use crate::buffer::{Budget, Buffer, HEAD_ROOM};
use crate::handshake::Agreed;
use crate::protocol::{
    CHUNK_MAGIC, Errno, MAX_REQUEST, REQUEST_HEAD, Request, SIMPLE_REPLY_MAGIC, chunk, command, flag,
};
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, scope};
use std::time::Instant;

/// Most requests of a connection that are carried out at a time.
const MAX_THREADS: usize = 16;
/// A device that takes longer for a request, in nanoseconds and beside the copying of its bytes, is waited for by a thread of
/// its own. Some times what it takes to wake one.
const SLOW: u64 = 20_000;
/// Longest time of one request that counts, in nanoseconds: one that was interrupted says little about the next.
const SLOWEST: u64 = 1_000_000;

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
const _: () = assert!(DATA_HEAD <= HEAD_ROOM);
/// Longest text of an error in a structured reply.
const MAX_TEXT: usize = 1024;

/// Serves requests until the client disconnects; those under way are answered then.
pub(crate) fn serve(
    input: &mut (impl Read + Send),
    output: &mut (impl Write + Send),
    device: &dyn BlockDevice,
    agreed: Agreed,
) -> Result<(), TransmissionError> {
    let session = Session {
        device,
        structured: agreed.structured,
        lead: Mutex::new(Lead { input, ended: false }),
        output: Mutex::new(output),
        failure: Mutex::default(),
        budget: Budget::new(MAX_REQUEST as usize),
        pace: AtomicU64::new(0),
        followers: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
    };
    scope(|scope| session.work(scope));
    let failure = session.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Bytes of data that a request takes memory for.
fn data_of(request: &Request) -> usize {
    match request.command {
        command::READ | command::WRITE if request.length <= MAX_REQUEST => request.length as usize,
        _ => 0,
    }
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

/// What the leader has.
struct Lead<R> {
    input: R,
    /// Nothing more is read.
    ended: bool,
}

/// A connection's state, shared by its threads.
struct Session<'a, R, W> {
    device: &'a dyn BlockDevice,
    structured: bool,
    lead: Mutex<Lead<R>>,
    output: Mutex<W>,
    /// The first one.
    failure: Mutex<Option<TransmissionError>>,
    budget: Budget,
    /// Nanoseconds that the device took for the last requests, more or less.
    pace: AtomicU64,
    /// Threads that wait for the lead.
    followers: AtomicUsize,
    threads: AtomicUsize,
}

impl<R: Read + Send, W: Write + Send> Session<'_, R, W> {
    /// A thread of the connection, until that ends.
    fn work<'scope, 'env>(&'scope self, scope: &'scope Scope<'scope, 'env>) {
        let mut buffer = Buffer::default();
        loop {
            self.followers.fetch_add(1, Ordering::Relaxed);
            let mut lead = lock(&self.lead);
            self.followers.fetch_sub(1, Ordering::Relaxed);
            let request = loop {
                let Some(request) = self.next(&mut lead, &mut buffer) else { return };
                if self.waits_for(&request) && self.has_follower(scope) {
                    break request;
                }
                self.carry_out(&request, &mut buffer);
            };
            drop(lead);
            self.carry_out(&request, &mut buffer);
        }
    }

    /// Reads the next request, with the data of a write. `None`: the connection ends.
    fn next(&self, lead: &mut Lead<R>, buffer: &mut Buffer) -> Option<Request> {
        if lead.ended {
            return None;
        }
        let next = if lock(&self.failure).is_some() { Ok(None) } else { self.read_request(lead, buffer) };
        lead.ended = !matches!(next, Ok(Some(_)));
        next.unwrap_or_else(|error| {
            self.fail(error);
            None
        })
    }

    fn read_request(
        &self,
        lead: &mut Lead<R>,
        buffer: &mut Buffer,
    ) -> Result<Option<Request>, TransmissionError> {
        let mut head = [0; REQUEST_HEAD];
        if !read_head(&mut lead.input, &mut head)? {
            return Ok(None);
        }
        let request = Request::parse(&head).ok_or(TransmissionError::Magic)?;
        if request.command == command::DISC {
            return Ok(None);
        }
        self.budget.take(data_of(&request));
        if request.command == command::WRITE {
            if request.length > MAX_REQUEST {
                return Err(TransmissionError::TooLong(request.length));
            }
            lead.input.read_exact(buffer.room(request.length as usize))?;
        }
        Ok(Some(request))
    }

    /// Whether the device lets wait for this request.
    fn waits_for(&self, request: &Request) -> bool {
        !matches!(request.command, command::READ | command::WRITE) || self.pace.load(Ordering::Relaxed) > SLOW
    }

    /// Whether a thread is there to take the lead; starts one if need be.
    fn has_follower<'scope, 'env>(&'scope self, scope: &'scope Scope<'scope, 'env>) -> bool {
        if self.followers.load(Ordering::Relaxed) > 0 {
            return true;
        }
        // Only the leader comes here.
        if self.threads.load(Ordering::Relaxed) < MAX_THREADS {
            let name = std::thread::current().name().unwrap_or("nbd").to_owned();
            let started = Builder::new().name(name).spawn_scoped(scope, || self.work(scope));
            match started {
                Ok(_) => drop(self.threads.fetch_add(1, Ordering::Relaxed)),
                Err(error) => tracing::warn!(%error, "a connection goes on with fewer threads"),
            }
        }
        // Those there are come back once they have carried out what they have.
        self.threads.load(Ordering::Relaxed) > 1
    }

    fn carry_out(&self, request: &Request, buffer: &mut Buffer) {
        let replied = match request.command {
            command::READ => self.read(request, buffer),
            command::WRITE => {
                let done = self.timed(request, || self.write(request, buffer));
                self.simple_reply(request, done)
            }
            _ => self.simple_reply(request, self.other(request)),
        };
        self.budget.give(data_of(request));
        buffer.trim();
        if let Err(error) = replied {
            self.fail(error.into());
        }
    }

    /// The first failure ends the connection; the reader finds it with the next request, or the end of the stream.
    fn fail(&self, error: TransmissionError) {
        lock(&self.failure).get_or_insert(error);
    }

    /// Times a request of the device.
    fn timed<T>(&self, request: &Request, request_it: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = request_it();
        // Copying alone takes some 0.25 ns for each byte.
        let copying = u64::from(request.length / 4);
        let took = (began.elapsed().as_nanos() as u64).saturating_sub(copying).min(SLOWEST);
        let pace = self.pace.load(Ordering::Relaxed);
        self.pace.store(pace - pace / 8 + took / 8, Ordering::Relaxed);
        done
    }

    fn reply(&self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.output).write_all(bytes)
    }

    fn simple_reply(&self, request: &Request, done: Result<(), Failure>) -> io::Result<()> {
        self.reply(&simple_head(request, done.map_or_else(|f| f.errno as u32, |()| 0)))
    }

    fn read(&self, request: &Request, buffer: &mut Buffer) -> io::Result<()> {
        let done = if request.length > MAX_REQUEST {
            Err(Failure::new(Errno::Overflow, "The read is longer than the largest block size"))
        } else {
            check(request, flag::FUA | flag::DF)
                .and_then(|()| self.check_range(request, Errno::Inval))
                .and_then(|()| {
                    let data = buffer.room(request.length as usize);
                    if data.is_empty() {
                        return Ok(());
                    }
                    Ok(self.timed(request, || self.device.read(request.offset, data))?)
                })
        };
        match done {
            Err(failure) if self.structured => self.reply(&error_chunk(request, &failure)),
            Err(failure) => self.simple_reply(request, Err(failure)),
            Ok(()) if self.structured && request.length == 0 => {
                self.reply(&chunk_head(request, chunk::NONE, 0))
            }
            Ok(()) if self.structured => {
                let mut head = [0; DATA_HEAD];
                let length = 8 + request.length;
                head[..CHUNK_HEAD].copy_from_slice(&chunk_head(request, chunk::OFFSET_DATA, length));
                head[CHUNK_HEAD..].copy_from_slice(&request.offset.to_be_bytes());
                self.reply(buffer.behind(&head, request.length as usize))
            }
            Ok(()) => self.reply(buffer.behind(&simple_head(request, 0), request.length as usize)),
        }
    }

    fn write(&self, request: &Request, buffer: &mut Buffer) -> Result<(), Failure> {
        check(request, flag::FUA)?;
        self.check_range(request, Errno::NoSpace)?;
        let data = buffer.room(request.length as usize);
        if !data.is_empty() {
            self.device.write(request.offset, data, request.has(flag::FUA))?;
        }
        Ok(())
    }

    fn other(&self, request: &Request) -> Result<(), Failure> {
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

fn error_chunk(request: &Request, failure: &Failure) -> Vec<u8> {
    let text = text_of(failure);
    let mut reply = chunk_head(request, chunk::ERROR, 6 + text.len() as u32).to_vec();
    reply.extend((failure.errno as u32).to_be_bytes());
    reply.extend((text.len() as u16).to_be_bytes());
    reply.extend(text.as_bytes());
    reply
}

/// At most [`MAX_TEXT`] bytes of the failure's text, cut between two characters.
fn text_of(failure: &Failure) -> &str {
    let end = (0..=MAX_TEXT.min(failure.text.len())).rev().find(|&i| failure.text.is_char_boundary(i));
    &failure.text[..end.unwrap_or(0)]
}
