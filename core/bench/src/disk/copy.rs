//! The least that replication takes: an image whose writes are, beside being written, sent to somebody who writes them, too.
//!
//! ```text
//!  write ─┬─► image
//!         └─► ring ─ sending thread ══ { offset u64, length u64, data }*, loopback TCP ══► receiving thread ─► the other image
//! ```
//! - The ring holds [`RING`] bytes of buffers that are used again; a write waits while it is full. What has gathered goes out with
//!   one system call.
//! - Nothing is framed, hashed, answered, kept until an epoch is complete, or noted for a later resynchronisation; two writes of the
//!   same place may end up in another order there. So no plugin can do this, and none can do with less.

use super::BenchError;
use super::channel::loopback;
use super::servers::Raw;
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use aventine_disk_common::image::Image;
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::io::{self, BufReader, ErrorKind, IoSlice, Read, Write};
use std::mem::take;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Bytes in the ring: few, so that the processor's caches have them still when they are sent.
const RING: usize = 4 << 20;
/// Most writes, and bytes, that are sent with one system call.
const MOST: usize = 256;
const MOST_BYTES: usize = 1 << 20;
const HEAD: usize = 16;
/// The thread of the other side.
pub(super) const RECEIVE: &str = "copy receive";
/// How long the other side may take for what is under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why nothing is copied any more.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("The connection of the bare copy failed")]
    Connection(#[source] io::Error),
    #[error("The image of the bare copy cannot be written")]
    Image(#[source] PluginError),
    #[error("The bare copy has ended")]
    Ended,
    #[error("The bare copy takes reads and writes only")]
    Unsupported,
    #[error("The other side of the bare copy does nothing for a minute")]
    Silent,
}

impl From<CopyError> for PluginError {
    fn from(error: CopyError) -> PluginError {
        PluginError::new(ErrorCode::Io, error)
    }
}

/// One write: its head as it is sent, and its data.
type Entry = ([u8; HEAD], Vec<u8>);

#[derive(Default)]
struct State {
    queue: VecDeque<Entry>,
    /// Buffers that nobody uses now.
    spare: Vec<Vec<u8>>,
    /// Bytes queued or being sent.
    bytes: usize,
    /// Writes that were queued, and those that the other side has written.
    queued: u64,
    written: u64,
    failed: Option<CopyError>,
    ended: bool,
}

#[derive(Default)]
struct Ring {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    arrived: Condvar,
}

impl Ring {
    fn fail(&self, error: CopyError) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.failed.get_or_insert(error);
        }
        drop(state);
        [&self.work, &self.room, &self.arrived].into_iter().for_each(Condvar::notify_all);
    }

    fn push(&self, offset: u64, data: &[u8]) -> Result<(), CopyError> {
        let full = |s: &mut State| s.failed.is_none() && s.bytes >= RING;
        let mut state = wait_while(&self.room, lock(&self.state), full);
        if state.failed.is_some() {
            return Err(CopyError::Ended);
        }
        state.bytes += data.len();
        let mut buffer = state.spare.pop().unwrap_or_default();
        drop(state);
        buffer.clear();
        buffer.extend_from_slice(data);
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&offset.to_le_bytes());
        head[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        let mut state = lock(&self.state);
        state.queue.push_back((head, buffer));
        state.queued += 1;
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.work.notify_one();
        }
        Ok(())
    }

    fn send_all(&self, stream: &TcpStream) {
        let mut batch: Vec<Entry> = Vec::new();
        loop {
            let idle = |s: &mut State| s.failed.is_none() && !s.ended && s.queue.is_empty();
            let mut state = wait_while(&self.work, lock(&self.state), idle);
            if state.failed.is_some() || state.ended {
                return;
            }
            let mut bytes = 0;
            while batch.len() < MOST && bytes < MOST_BYTES {
                let Some(entry) = state.queue.pop_front() else { break };
                bytes += entry.1.len();
                batch.push(entry);
            }
            drop(state);
            if let Err(error) = send(stream, &batch) {
                return self.fail(CopyError::Connection(error));
            }
            let mut state = lock(&self.state);
            state.bytes -= bytes;
            state.spare.extend(batch.drain(..).map(|(_, data)| data));
            drop(state);
            // Whoever goes on is sent in turn, and lets the next one go.
            self.room.notify_one();
        }
    }

    fn receive_all(&self, stream: TcpStream, image: &Image) {
        let (mut stream, mut data) = (BufReader::with_capacity(64 << 10, stream), Vec::new());
        loop {
            let mut head = [0; HEAD];
            match stream.read_exact(&mut head) {
                Ok(()) => {}
                Err(e) => return self.fail(CopyError::Connection(e)),
            }
            let [offset, len] = [0, 8].map(|at| {
                let mut word = [0; 8];
                word.copy_from_slice(&head[at..at + 8]);
                u64::from_le_bytes(word)
            });
            data.resize(len as usize, 0);
            if let Err(error) = stream.read_exact(&mut data) {
                return self.fail(CopyError::Connection(error));
            }
            if let Err(error) = image.write_behind(offset, &[IoSlice::new(&data)]) {
                return self.fail(CopyError::Image(error.into()));
            }
            let mut state = lock(&self.state);
            state.written += 1;
            let all = state.written == state.queued;
            drop(state);
            if all {
                self.arrived.notify_all();
            }
        }
    }
}

fn send(mut stream: &TcpStream, batch: &[Entry]) -> io::Result<()> {
    let parts = batch.iter().flat_map(|(head, data)| [&head[..], data]);
    let mut parts: Vec<_> = parts.map(IoSlice::new).collect();
    let mut rest = &mut parts[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The device, and both of its threads.
pub(super) struct Copied {
    image: Raw,
    ring: Arc<Ring>,
    stream: TcpStream,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Copied {
    /// Copies writes of `image` to `other`.
    pub(super) fn start(image: Image, other: Image) -> Result<Copied, BenchError> {
        let [ours, theirs] = loopback().map_err(BenchError::Channel)?;
        let ring = Arc::new(Ring::default());
        let (sending, receiving) = (Arc::clone(&ring), Arc::clone(&ring));
        let stream = ours.try_clone().map_err(BenchError::Channel)?;
        let copied = Copied { image: Raw(image), ring, stream, threads: Mutex::default() };
        copied.spawn("copy send", move || sending.send_all(&ours))?;
        copied.spawn(RECEIVE, move || receiving.receive_all(theirs, &other))?;
        Ok(copied)
    }

    fn spawn(&self, name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), BenchError> {
        let thread = Builder::new().name(name.into()).spawn(f).map_err(BenchError::Thread)?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Waits until the other side has written all.
    pub(super) fn settle(&self) -> Result<(), PluginError> {
        let under_way = |s: &mut State| s.failed.is_none() && s.written < s.queued;
        let waited = self.ring.arrived.wait_timeout_while(lock(&self.ring.state), PATIENCE, under_way);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match state.failed.take() {
            Some(error) => Err(error.into()),
            None if state.written < state.queued => Err(CopyError::Silent.into()),
            None => Ok(()),
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        lock(&self.ring.state).ended = true;
        self.ring.work.notify_all();
        // It is gone already otherwise.
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
    }
}

impl BlockDevice for Copied {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        self.image.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        self.image.write(offset, data, fua)?;
        Ok(self.ring.push(offset, data)?)
    }

    // The loads have none of those.
    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), PluginError> {
        Err(CopyError::Unsupported.into())
    }

    fn trim(&self, _: u64, _: u64) -> Result<(), PluginError> {
        Err(CopyError::Unsupported.into())
    }

    fn flush(&self) -> Result<(), PluginError> {
        self.image.flush()
    }
}
