//! Changes of a disk as they are queued, sent and checked. Integers are little-endian.
//!
//! ```text
//! Changes    { kind u8, offset u64, length u64, data }*    the payload of a record, in the order of the primary's disk
//! Summary    changes u64, bytes u64, checksum u64          the payload of a barrier
//! ```
//! A barrier counts and checks all changes since the one before it.

use aventine_api::Epoch;
use std::hash::Hasher;
use std::ops::Range;
use twox_hash::XxHash3_64;

/// Bytes before a change's data.
pub const CHANGE_HEAD: usize = 17;

/// Longest data of one change; longer writes become several. So short that what copies them, hashes them and sends them finds
/// them in the processor's cache.
pub const MAX_CHANGE: usize = 256 << 10;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const UNMAP: u8 = 3;

/// What does not make sense in a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Two releases.
    #[error(
        "The primary speaks version {theirs} of the disk's protocol, this host version {ours}. Run the same release on both"
    )]
    Version {
        /// The primary's.
        theirs: u16,
        /// This host's.
        ours: u16,
    },
    /// A kind or an epoch that is not due.
    #[error("A record of kind {kind} of epoch {epoch} has no place here")]
    Unexpected {
        /// The record's.
        kind: u8,
        /// The record's.
        epoch: Epoch,
    },
    /// Shorter, or longer, than it says.
    #[error("A record ends in the middle")]
    Short,
    /// Neither a write nor zeroes.
    #[error("A change of unknown kind {0} arrived")]
    Change(u8),
    /// Outside of the disk, or of no bytes.
    #[error("A change of {len} bytes at {offset} does not fit the disk")]
    Range {
        /// Bytes from the disk's beginning.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A change is missing or harmed.
    #[error("Epoch {epoch} arrived as {got:?}, but the primary sent {sent:?}")]
    Summary {
        /// The barrier's.
        epoch: Epoch,
        /// What the barrier says.
        sent: Summary,
        /// What arrived.
        got: Summary,
    },
}

/// One change as it is queued: the head as it is sent, and the data of a write.
pub struct Change {
    /// Kind, offset and length.
    pub head: [u8; CHANGE_HEAD],
    /// Empty for zeroes.
    pub data: Vec<u8>,
}

impl Change {
    /// A write, in pieces that fit.
    pub fn write(offset: u64, data: &[u8]) -> impl Iterator<Item = Change> + '_ {
        Change::write_by(offset, data, <[u8]>::to_vec)
    }

    /// A write, in pieces that fit and that `copy` makes.
    pub fn write_by(
        offset: u64,
        data: &[u8],
        copy: impl Fn(&[u8]) -> Vec<u8>,
    ) -> impl Iterator<Item = Change> {
        data.chunks(MAX_CHANGE)
            .enumerate()
            .map(move |(i, piece)| Change::piece(offset + (i * MAX_CHANGE) as u64, copy(piece)))
    }

    /// A write of at most [`MAX_CHANGE`] bytes.
    pub fn piece(offset: u64, data: Vec<u8>) -> Change {
        Change { head: head(WRITE, offset, data.len() as u64), data }
    }

    /// A range of zeroes.
    pub fn zero(offset: u64, len: u64, unmap: bool) -> Change {
        Change { head: head(if unmap { UNMAP } else { ZERO }, offset, len), data: Vec::new() }
    }

    /// The bytes of the disk that it is about.
    pub fn range(&self) -> Range<u64> {
        let (offset, len) = (self.word(1), self.word(9));
        offset..offset + len
    }

    /// As the other side sees it.
    pub fn arrived(&self) -> Arrived<'_> {
        let (offset, len) = (self.word(1), self.word(9));
        match self.head[0] {
            WRITE => Arrived::Write { offset, data: &self.data },
            kind => Arrived::Zero { offset, len, unmap: kind == UNMAP },
        }
    }

    fn word(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.head[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        self.head.len() + self.data.len()
    }
}

fn head(kind: u8, offset: u64, len: u64) -> [u8; CHANGE_HEAD] {
    let mut head = [kind; CHANGE_HEAD];
    head[1..9].copy_from_slice(&offset.to_le_bytes());
    head[9..].copy_from_slice(&len.to_le_bytes());
    head
}

/// One change as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived<'a> {
    /// Bytes.
    Write {
        /// Where they go.
        offset: u64,
        /// What they are.
        data: &'a [u8],
    },
    /// Zeroes.
    Zero {
        /// Where they begin.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether their space may be given back.
        unmap: bool,
    },
}

/// Takes the first change off a record's payload.
fn split<'a>(payload: &mut &'a [u8], size: u64) -> Result<Arrived<'a>, RecordError> {
    let kind = take::<1>(payload)?[0];
    let offset = u64::from_le_bytes(take(payload)?);
    let len = u64::from_le_bytes(take(payload)?);
    if len == 0 || offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(RecordError::Range { offset, len });
    }
    match kind {
        WRITE => {
            let len = usize::try_from(len).map_err(|_| RecordError::Short)?;
            Ok(Arrived::Write { offset, data: payload.split_off(..len).ok_or(RecordError::Short)? })
        }
        ZERO | UNMAP => Ok(Arrived::Zero { offset, len, unmap: kind == UNMAP }),
        other => Err(RecordError::Change(other)),
    }
}

/// The changes of a record, for a disk of `size` bytes.
pub fn changes(mut payload: &[u8], size: u64) -> impl Iterator<Item = Result<Arrived<'_>, RecordError>> {
    std::iter::from_fn(move || {
        if payload.is_empty() {
            return None;
        }
        let change = split(&mut payload, size);
        if change.is_err() {
            payload = &[];
        }
        Some(change)
    })
}

/// Takes `N` bytes off the front.
pub fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(RecordError::Short)?;
    *bytes = rest;
    Ok(*head)
}

/// What a barrier says about its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many changes.
    pub changes: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// XXH3 of those.
    pub checksum: u64,
}

impl Summary {
    /// A barrier's payload.
    pub fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.changes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Reads a barrier's payload.
    pub fn parse(mut payload: &[u8]) -> Result<Summary, RecordError> {
        let mut field = || take(&mut payload).map(u64::from_le_bytes);
        let summary = Summary { changes: field()?, bytes: field()?, checksum: field()? };
        if payload.is_empty() { Ok(summary) } else { Err(RecordError::Short) }
    }
}

/// Counts and hashes the changes of the open epoch, in order.
#[derive(Default)]
pub struct Tally {
    changes: u64,
    bytes: u64,
    hash: XxHash3_64,
}

impl Tally {
    /// Adds a change that is sent.
    pub fn add(&mut self, change: &Change) {
        self.changes += 1;
        self.bytes += change.wire_len() as u64;
        self.hash.write(&change.head);
        self.hash.write(&change.data);
    }

    /// Checks every change of a record and adds it.
    pub fn add_record(&mut self, payload: &[u8], size: u64) -> Result<(), RecordError> {
        self.changes += changes(payload, size).try_fold(0, |n, change| change.map(|_| n + 1))?;
        self.bytes += payload.len() as u64;
        self.hash.write(payload);
        Ok(())
    }

    /// The sum so far; begins a new one.
    pub fn finish(&mut self) -> Summary {
        let Tally { changes, bytes, hash } = std::mem::take(self);
        Summary { changes, bytes, checksum: hash.finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn record(changes: &[Change]) -> Vec<u8> {
        changes.iter().flat_map(|c| c.head.iter().chain(&c.data).copied()).collect()
    }

    #[test]
    fn both_sides_come_to_the_same_sum() {
        let data: Vec<u8> = (0..MAX_CHANGE + 5).map(|i| i as u8).collect();
        let mut sent: Vec<_> = Change::write(10, &data).collect();
        assert_eq!(sent.len(), 2);
        sent.push(Change::zero(0, 1 << 40, true));
        let (mut ours, mut theirs) = (Tally::default(), Tally::default());
        sent.iter().for_each(|c| ours.add(c));
        theirs.add_record(&record(&sent[..1]), 1 << 40).unwrap();
        theirs.add_record(&record(&sent[1..]), 1 << 40).unwrap();
        let sum = ours.finish();
        assert_eq!(theirs.finish(), sum);
        assert_eq!(Summary::parse(&sum.encode()).unwrap(), sum);
        assert_eq!(Tally::default().finish(), ours.finish(), "a new sum begins");

        let arrived = record(&sent);
        let arrived: Result<Vec<_>, _> = changes(&arrived, 1 << 40).collect();
        let second = 10 + MAX_CHANGE as u64;
        assert_eq!(
            arrived.unwrap(),
            [
                Arrived::Write { offset: 10, data: &data[..MAX_CHANGE] },
                Arrived::Write { offset: second, data: &data[MAX_CHANGE..] },
                Arrived::Zero { offset: 0, len: 1 << 40, unmap: true },
            ]
        );
    }

    #[test]
    fn nonsense_is_named() {
        let check = |payload: &[u8]| Tally::default().add_record(payload, 100).unwrap_err();
        let write = record(&Change::write(90, &[1; 10]).collect::<Vec<_>>());
        assert_eq!(check(&write[..20]), RecordError::Short);
        assert_eq!(check(&write[..3]), RecordError::Short);
        assert_eq!(check(&Change::zero(90, 11, false).head), RecordError::Range { offset: 90, len: 11 });
        assert_eq!(check(&Change::zero(90, 0, false).head), RecordError::Range { offset: 90, len: 0 });
        let far = RecordError::Range { offset: u64::MAX, len: 2 };
        assert_eq!(check(&Change::zero(u64::MAX, 2, false).head), far);
        assert_eq!(check(&head(9, 0, 1)), RecordError::Change(9));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..200), kind in 0..5_u8, len in 0..200_u64) {
            let bytes = [&head(kind, 0, len)[..], &bytes].concat();
            let all: Vec<_> = changes(&bytes, 200).collect();
            prop_assert!(all.len() <= bytes.len());
            let _ = Summary::parse(&bytes);
        }
    }
}
