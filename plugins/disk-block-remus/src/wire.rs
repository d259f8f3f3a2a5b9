//! The records of a disk's channel. Integers are little-endian.
//!
//! ```text
//! Describe   version u16, size u64                                     first, once
//! Changes    { kind u8, offset u64, length u64, data }*                in the order of the primary's image
//! Copied                                                               once, after the initial copy
//! Barrier    changes u64, bytes u64, checksum u64                      ends an epoch; carries its number
//! ```
//! A barrier counts and checks all changes since the one before it.

use aventine_api::Epoch;
use xxhash_rust::xxh3::Xxh3;

/// The version of this layout.
pub(crate) const VERSION: u16 = 1;

/// Kinds of records.
pub(crate) mod kind {
    pub(crate) const DESCRIBE: u8 = 1;
    pub(crate) const CHANGES: u8 = 2;
    pub(crate) const COPIED: u8 = 3;
    pub(crate) const BARRIER: u8 = 4;
}

/// Bytes before a change's data.
pub(crate) const CHANGE_HEAD: usize = 17;

/// Longest data of one change; longer writes become several.
pub(crate) const MAX_CHANGE: usize = 1 << 20;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const UNMAP: u8 = 3;

/// What does not make sense in a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RecordError {
    #[error(
        "The primary speaks version {0} of the disk's protocol, this host version {VERSION}. Run the same release on both"
    )]
    Version(u16),
    #[error("A record of kind {kind} of epoch {epoch} has no place here")]
    Unexpected { kind: u8, epoch: Epoch },
    #[error("A record ends in the middle")]
    Short,
    #[error("A change of unknown kind {0} arrived")]
    Change(u8),
    #[error("A change of {len} bytes at {offset} does not fit the disk")]
    Range { offset: u64, len: u64 },
    #[error("Epoch {epoch} arrived as {got:?}, but the primary sent {sent:?}")]
    Summary { epoch: Epoch, sent: Summary, got: Summary },
}

/// One change as it is queued: the head as it is sent, and the data of a write.
pub(crate) struct Change {
    pub(crate) head: [u8; CHANGE_HEAD],
    pub(crate) data: Vec<u8>,
}

impl Change {
    /// A write, in pieces that fit.
    pub(crate) fn write(offset: u64, data: &[u8]) -> impl Iterator<Item = Change> + '_ {
        data.chunks(MAX_CHANGE)
            .enumerate()
            .map(move |(i, piece)| Change::piece(offset + (i * MAX_CHANGE) as u64, piece.to_vec()))
    }

    /// A write of at most [`MAX_CHANGE`] bytes.
    pub(crate) fn piece(offset: u64, data: Vec<u8>) -> Change {
        Change { head: head(WRITE, offset, data.len() as u64), data }
    }

    /// A range of zeroes.
    pub(crate) fn zero(offset: u64, len: u64, unmap: bool) -> Change {
        Change { head: head(if unmap { UNMAP } else { ZERO }, offset, len), data: Vec::new() }
    }

    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
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
pub(crate) enum Arrived<'a> {
    Write { offset: u64, data: &'a [u8] },
    Zero { offset: u64, len: u64, unmap: bool },
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
pub(crate) fn changes(
    mut payload: &[u8],
    size: u64,
) -> impl Iterator<Item = Result<Arrived<'_>, RecordError>> {
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

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(RecordError::Short)?;
    *bytes = rest;
    Ok(*head)
}

/// What a barrier says about its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) changes: u64,
    pub(crate) bytes: u64,
    pub(crate) checksum: u64,
}

impl Summary {
    pub(crate) fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.changes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(mut payload: &[u8]) -> Result<Summary, RecordError> {
        let mut field = || take(&mut payload).map(u64::from_le_bytes);
        let summary = Summary { changes: field()?, bytes: field()?, checksum: field()? };
        if payload.is_empty() { Ok(summary) } else { Err(RecordError::Short) }
    }
}

/// Counts and hashes the changes of the open epoch, in order.
#[derive(Default)]
pub(crate) struct Tally {
    changes: u64,
    bytes: u64,
    hash: Xxh3,
}

impl Tally {
    pub(crate) fn add(&mut self, change: &Change) {
        self.changes += 1;
        self.bytes += change.len() as u64;
        self.hash.update(&change.head);
        self.hash.update(&change.data);
    }

    /// Checks every change of a record and adds it.
    pub(crate) fn add_record(&mut self, payload: &[u8], size: u64) -> Result<(), RecordError> {
        self.changes += changes(payload, size).try_fold(0, |n, change| change.map(|_| n + 1))?;
        self.bytes += payload.len() as u64;
        self.hash.update(payload);
        Ok(())
    }

    /// The sum so far; begins a new one.
    pub(crate) fn finish(&mut self) -> Summary {
        let Tally { changes, bytes, hash } = std::mem::take(self);
        Summary { changes, bytes, checksum: hash.digest() }
    }
}

/// What the first record says.
pub(crate) fn describe(size: u64) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
    bytes[2..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// The size that the first record tells.
pub(crate) fn parse_description(mut payload: &[u8]) -> Result<u64, RecordError> {
    let version = u16::from_le_bytes(take(&mut payload)?);
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let size = u64::from_le_bytes(take(&mut payload)?);
    if payload.is_empty() { Ok(size) } else { Err(RecordError::Short) }
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
        assert_eq!(parse_description(&[9; 10]), Err(RecordError::Version(0x909)));
        assert_eq!(parse_description(&describe(77)), Ok(77));
        assert_eq!(parse_description(&[1, 0, 5]), Err(RecordError::Short));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..200), kind in 0..5_u8, len in 0..200_u64) {
            let bytes = [&head(kind, 0, len)[..], &bytes].concat();
            let all: Vec<_> = changes(&bytes, 200).collect();
            prop_assert!(all.len() <= bytes.len());
            let _ = Summary::parse(&bytes);
            let _ = parse_description(&bytes);
        }
    }
}
