//! Memory that is lent: to who sends, so that the device reads it where it is, and to who receives, where the other host's device
//! has written.
//!
//! Invariants:
//! - A buffer of a [`Pool`] has one owner at a time: nobody (free), the account of [`crate::ring`] (offered, or not consumed), or a
//!   [`Buffer`] that the receiver's caller has.
//! - What a [`Sources`] takes for lent memory is so: the table knows exactly what is alive, and what is alive is nobody else's.
//! - Memory of a [`Sources`] that the device may read is kept, even when its borrower has dropped it: until the writes that name
//!   it have completed, or the queue pair is gone.
//! - Both outlive their channel: the memory stays registered for as long as somebody has it, and belongs to a queue pair of this
//!   channel alone.

use crate::endpoint::Endpoint;
use crate::ffi::Sge;
use crate::resource::Memory;
use crate::wire::Buffers;
use aventine_api::LentMemory;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::warn;

/// Shortest that is not copied: a message of its own and waiting for the device take as long as copying less.
pub(crate) const DIRECT: usize = 64 << 10;
/// Most that a pool has in all, in bytes: registering more would take longer than a channel may take to open.
const MOST: usize = 1 << 30;
/// Most of a message in lent memory that may lie elsewhere: tables of a codec.
const NOTES: usize = 64 << 10;
/// Most messages that the device may be reading from lent memory: one on the wire, and one behind it.
const UNREAD: usize = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_of(bytes: usize, error: &io::Error) {
    warn!(
        bytes,
        error = %error,
        "Pages are copied: this memory could not be registered for RDMA. Allow this process to lock the staging memory of its \
         guests (`ulimit -l`, LimitMEMLOCK= of a unit)"
    );
}

/// The receiver's buffers.
pub(crate) struct Pool {
    memory: Memory,
    /// Of each.
    bytes: usize,
    count: u32,
    free: Mutex<Vec<u32>>,
}

impl Pool {
    /// Of at most `count` buffers, of which the first `offered` are not free. `None` when none are asked for, or there must not be so many.
    pub(crate) fn new(endpoint: &Endpoint, count: usize, bytes: usize, offered: u32) -> Option<Arc<Pool>> {
        let most = u32::try_from(MOST.checked_div(bytes)?).ok()?;
        let count = most.min(u32::try_from(count).unwrap_or(most));
        let total = count as usize * bytes;
        if total == 0 {
            return None;
        }
        let memory = endpoint.register(total, true).inspect_err(|error| warn_of(total, error)).ok()?;
        let free = Mutex::new((offered.min(count)..count).rev().collect());
        Some(Arc::new(Pool { memory, bytes, count, free }))
    }

    /// As the other side writes to them.
    pub(crate) fn buffers(&self) -> Buffers {
        let (address, key) = (self.memory.address(), self.memory.remote_key());
        Buffers { address, key, length: self.bytes as u32, count: self.count }
    }

    /// A free one.
    pub(crate) fn take(&self) -> Option<u32> {
        lock(&self.free).pop()
    }

    /// It is free.
    pub(crate) fn give(&self, buffer: u32) {
        lock(&self.free).push(buffer);
    }

    /// Reads from one.
    pub(crate) fn get(&self, buffer: u32, at: usize, bytes: &mut [u8]) {
        self.memory.get(buffer as usize * self.bytes + at, bytes);
    }
}

/// A buffer with what came in it.
pub(crate) struct Buffer {
    pool: Arc<Pool>,
    number: u32,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is this buffer's alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// The first `len` bytes of one that is nobody else's.
    pub(crate) fn new(pool: &Arc<Pool>, number: u32, len: usize) -> Buffer {
        assert!(len <= pool.bytes, "more than a buffer");
        let at = pool.memory.place(number as usize * pool.bytes, len);
        Buffer { pool: Arc::clone(pool), number, at, len }
    }
}

impl LentMemory for Buffer {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the pool keeps it, and the buffer is not offered: the other host's device writes to it only against the rules,
        // and then these are some bytes.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give(self.number);
    }
}

/// Where lent memory begins, and of each its end and who has it.
type Table<M> = BTreeMap<usize, (usize, M)>;

/// What holds all of `part`.
fn holder<'t, M>(table: &'t Table<M>, part: &[u8]) -> Option<&'t M> {
    let at = part.as_ptr() as usize;
    let (_, (end, memory)) = table.range(..=at).next_back()?;
    (at + part.len() <= *end).then_some(memory)
}

/// A message that the device may be reading.
struct Unread {
    /// The `send` that it is of.
    send: u64,
    /// Where it ends in the account of [`crate::ring`].
    end: u64,
    _memory: Vec<Arc<Memory>>,
}

/// What a sender lends, and what it has of messages that lie there and elsewhere.
pub(crate) struct Sources {
    table: Arc<Mutex<Table<Arc<Memory>>>>,
    /// [`NOTES`] bytes for each of [`UNREAD`] messages, in turn.
    notes: Memory,
    turn: usize,
    unread: VecDeque<Unread>,
}

impl Sources {
    pub(crate) fn new(endpoint: &Endpoint) -> Option<Sources> {
        let bytes = UNREAD * NOTES;
        let notes = endpoint.register(bytes, false).inspect_err(|error| warn_of(bytes, error)).ok()?;
        Some(Sources { table: Arc::default(), notes, turn: 0, unread: VecDeque::new() })
    }

    /// Memory of `bytes` bytes.
    pub(crate) fn lend(&self, endpoint: &Endpoint, bytes: usize) -> Option<Box<dyn LentMemory>> {
        let memory = endpoint.register(bytes, false).inspect_err(|error| warn_of(bytes, error)).ok()?;
        let (at, memory) = (memory.address() as usize, Arc::new(memory));
        lock(&self.table).insert(at, (at + bytes, Arc::clone(&memory)));
        Some(Box::new(Source { memory, table: Arc::clone(&self.table) }))
    }

    /// Whether one more message can be gathered.
    pub(crate) fn has_room(&self) -> bool {
        self.unread.len() < UNREAD
    }

    /// What a message is gathered from, and the memory to be kept for it, if enough of it lies in lent memory, and little elsewhere.
    /// That little is copied to where the device has read all, if [`Self::has_room`].
    pub(crate) fn gather(&mut self, message: &[&[u8]], pieces: &mut Vec<Sge>) -> Option<Vec<Arc<Memory>>> {
        let (table, notes, from) = (lock(&self.table), &mut self.notes, self.turn * NOTES);
        let (address, lkey) = (notes.address(), notes.local_key());
        let mut kept: Vec<Arc<Memory>> = Vec::new();
        arrange(
            message,
            pieces,
            |part| {
                let memory = holder(&table, part)?;
                if kept.last().is_none_or(|last| !Arc::ptr_eq(last, memory)) {
                    kept.push(Arc::clone(memory));
                }
                Some(memory.local_key())
            },
            |at, part| {
                notes.put(from + at, part);
                (address + (from + at) as u64, lkey)
            },
        )
        .then_some(kept)
    }

    /// What was gathered last is being written: by this `send`, up to this position.
    pub(crate) fn posted(&mut self, send: u64, end: u64, memory: Vec<Arc<Memory>>) {
        self.turn = (self.turn + 1) % UNREAD;
        self.unread.push_back(Unread { send, end, _memory: memory });
    }

    /// The device has read all that was written up to this position.
    pub(crate) fn read(&mut self, up_to: u64) {
        while self.unread.front().is_some_and(|message| message.end <= up_to) {
            self.unread.pop_front();
        }
    }

    /// The device reads nothing any more.
    pub(crate) fn read_all(&mut self) {
        self.unread.clear();
    }

    /// Whether it has read all that was sent up to this `send`.
    pub(crate) fn is_settled(&self, send: u64) -> bool {
        self.unread.front().is_none_or(|message| message.send > send)
    }
}

/// `key` answers that of lent memory, `note` where a copy is that it has put at a place of the notes.
fn arrange(
    message: &[&[u8]],
    pieces: &mut Vec<Sge>,
    mut key: impl FnMut(&[u8]) -> Option<u32>,
    mut note: impl FnMut(usize, &[u8]) -> (u64, u32),
) -> bool {
    pieces.clear();
    let (mut lent, mut noted) = (0, 0);
    for part in message.iter().filter(|part| !part.is_empty()) {
        let (addr, lkey) = match key(part) {
            Some(lkey) => {
                lent += part.len();
                (part.as_ptr() as u64, lkey)
            }
            None if part.len() > NOTES - noted => return false,
            None => {
                let placed = note(noted, part);
                noted += part.len();
                placed
            }
        };
        let length = part.len() as u32;
        match pieces.last_mut() {
            Some(last) if last.lkey == lkey && last.addr + u64::from(last.length) == addr => {
                last.length += length;
            }
            _ => pieces.push(Sge { addr, length, lkey }),
        }
    }
    lent >= DIRECT
}

/// What a sender's caller has.
struct Source {
    memory: Arc<Memory>,
    table: Arc<Mutex<Table<Arc<Memory>>>>,
}

impl LentMemory for Source {
    fn bytes(&self) -> &[u8] {
        let (at, len) = (self.memory.place(0, self.memory.len()), self.memory.len());
        // SAFETY: the memory is this one's; the device only reads it.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let (at, len) = (self.memory.place(0, self.memory.len()), self.memory.len());
        // SAFETY: as above. What the device reads of a message that is not settled are some bytes.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Before its place can be anybody else's.
        lock(&self.table).remove(&(self.memory.address() as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As [`Sources::gather`], with two pieces of lent memory, and notes at address 0.
    fn arranged(lent: &[&[u8]], message: &[&[u8]]) -> Option<Vec<(u64, u32, u32)>> {
        let mut table = Table::new();
        for (key, memory) in (1..).zip(lent) {
            let at = memory.as_ptr() as usize;
            table.insert(at, (at + memory.len(), key));
        }
        let (mut pieces, mut notes) = (Vec::new(), Vec::new());
        let direct = arrange(
            message,
            &mut pieces,
            |part| holder(&table, part).copied(),
            |at, part| {
                assert_eq!(at, notes.len());
                notes.extend_from_slice(part);
                (at as u64, 99)
            },
        );
        assert!(notes.len() <= NOTES);
        direct.then(|| pieces.iter().map(|p| (p.addr, p.length, p.lkey)).collect())
    }

    #[test]
    fn neighbours_are_one_piece_and_the_rest_is_noted() {
        let (one, two) = (vec![1; 2 * DIRECT], vec![2; DIRECT]);
        let lent = [&one[..], &two[..]];
        let (a, b) = (one.as_ptr() as u64, two.as_ptr() as u64);
        let all = |message: &[&[u8]]| arranged(&lent, message).unwrap();
        let pages: Vec<&[u8]> = one.chunks(4096).collect();
        assert_eq!(all(&pages), [(a, 2 * DIRECT as u32, 1)]);
        assert_eq!(
            all(&[b"table", b"", b"more", &one[..DIRECT], b"end", &two[..1], &two[2..3], &one[..1]]),
            [(0, 9, 99), (a, DIRECT as u32, 1), (9, 3, 99), (b, 1, 2), (b + 2, 1, 2), (a, 1, 1),]
        );
    }

    #[test]
    fn what_lies_mostly_elsewhere_is_copied() {
        let (one, foreign) = (vec![1; 2 * DIRECT], vec![3; NOTES + 1]);
        let direct = |message: &[&[u8]]| arranged(&[&one], message).is_some();
        assert!(direct(&[&foreign[..NOTES], &one]));
        assert!(!direct(&[&foreign, &one]), "more than there is room for");
        assert!(!direct(&[&foreign[..NOTES], &one, b"1"]));
        assert!(!direct(&[&foreign[..NOTES]]), "nothing of it is lent");
        assert!(!direct(&[&one[..DIRECT - 1]]), "too little to wait for");
        assert!(direct(&[&one[..DIRECT]]));
        assert!(!direct(&[]));
    }

    #[test]
    fn only_what_lies_in_it_whole_is_lent_memory() {
        let memory = [0; 100];
        let mut table = Table::new();
        let at = memory.as_ptr() as usize;
        table.insert(at + 10, (at + 20, 7));
        table.insert(at + 20, (at + 30, 8));
        for (from, to, key) in [
            (10, 20, Some(7)),
            (10, 11, Some(7)),
            (19, 20, Some(7)),
            (20, 30, Some(8)),
            (9, 11, None),
            (0, 100, None),
            (19, 21, None),
            (29, 31, None),
            (30, 31, None),
            (0, 5, None),
        ] {
            assert_eq!(holder(&table, &memory[from..to]).copied(), key, "{from}..{to}");
        }
        table.remove(&(at + 10));
        assert_eq!(holder(&table, &memory[10..20]), None);
    }
}
