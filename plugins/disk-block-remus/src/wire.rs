//! The records of a disk's channel. Integers are little-endian.
//!
//! ```text
//! Describe   version u16, size u64, block u64, asks u8,                first, once
//!            point 16, previous 16
//! Changes    { kind u8, offset u64, length u64, data }*                in the order of the primary's image
//! Copied                                                               once, after the initial copy
//! Barrier    changes u64, bytes u64, checksum u64                      ends an epoch; carries its number
//!            [, point 16, previous 16]                                 both images agree here: see `history`
//! ```
//! A barrier counts and checks all changes since the one before it. On the way back, where the primary asks for it:
//! ```text
//! Blocks     at u64, words u64*                                        blocks that the standby has changed: none or more
//! Answer     mode u8, reason                                           once: only changed blocks are needed (0), or all (1)
//! Reached    point 16                                                  it is in the standby's metadata
//! ```

use crate::blocks::{BLOCK, Blocks};
use crate::history::Next;
use crate::meta::Id;
use aventine_api::Epoch;
use xxhash_rust::xxh3::Xxh3;

/// The version of this layout.
pub(crate) const VERSION: u16 = 2;

/// Kinds of records.
pub(crate) mod kind {
    pub(crate) const DESCRIBE: u8 = 1;
    pub(crate) const CHANGES: u8 = 2;
    pub(crate) const COPIED: u8 = 3;
    pub(crate) const BARRIER: u8 = 4;

    pub(crate) const BLOCKS: u8 = 1;
    pub(crate) const ANSWER: u8 = 2;
    pub(crate) const REACHED: u8 = 3;
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

/// What ends an epoch.
pub(crate) fn barrier(summary: Summary, next: Option<Next>) -> Vec<u8> {
    let mut bytes = summary.encode().to_vec();
    if let Some(Next { id, previous }) = next {
        bytes.extend(id.0);
        bytes.extend(previous.0);
    }
    bytes
}

/// The sum that a barrier tells, and the point that it carries.
pub(crate) fn parse_barrier(payload: &[u8]) -> Result<(Summary, Option<Next>), RecordError> {
    let (summary, mut rest) = payload.split_at_checked(24).ok_or(RecordError::Short)?;
    let summary = Summary::parse(summary)?;
    if rest.is_empty() {
        return Ok((summary, None));
    }
    let next = Next { id: Id(take(&mut rest)?), previous: Id(take(&mut rest)?) };
    if rest.is_empty() && next.id.is_some() { Ok((summary, Some(next))) } else { Err(RecordError::Short) }
}

/// What the first record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) size: u64,
    pub(crate) block: u64,
    /// Whether the primary waits for an answer.
    pub(crate) asks: bool,
    pub(crate) point: Id,
    pub(crate) previous: Id,
}

impl Description {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.block.to_le_bytes());
        bytes.push(u8::from(self.asks));
        bytes.extend(self.point.0);
        bytes.extend(self.previous.0);
        bytes
    }

    pub(crate) fn parse(mut payload: &[u8]) -> Result<Description, RecordError> {
        let version = u16::from_le_bytes(take(&mut payload)?);
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let size = u64::from_le_bytes(take(&mut payload)?);
        let block = u64::from_le_bytes(take(&mut payload)?);
        let asks = take::<1>(&mut payload)?[0] != 0;
        let (point, previous) = (Id(take(&mut payload)?), Id(take(&mut payload)?));
        let description = Description { size, block, asks, point, previous };
        if payload.is_empty() { Ok(description) } else { Err(RecordError::Short) }
    }

    /// Why a standby with these points needs everything; `None`: both have one in common.
    pub(crate) fn why_full(&self, point: Id, previous: Id) -> Option<&'static str> {
        if !self.point.is_some() {
            Some("the primary's image has no history")
        } else if !point.is_some() {
            Some("the standby's image has no history")
        } else if self.block != BLOCK {
            Some("the primary notes blocks of another size")
        } else if self.point == point || self.previous == point || self.point == previous {
            None
        } else {
            Some("the two images have no history in common")
        }
    }
}

/// Words in one record of changed blocks.
const MOST_WORDS: usize = 64 << 10;
/// Longest reason of a full copy.
const MOST_REASON: usize = 200;

/// A record of the way back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnswerRecord {
    Blocks { at: usize, words: Vec<u64> },
    Changed,
    Full(String),
    Reached(Id),
}

/// The records that tell a set of changed blocks, each with its payload.
pub(crate) fn changed_records(blocks: &Blocks) -> Vec<Vec<u8>> {
    let words: Vec<u64> = blocks.words().collect();
    let pieces = words.chunks(MOST_WORDS).enumerate().filter(|(_, piece)| piece.iter().any(|w| *w != 0));
    let record = |(i, piece): (usize, &[u64])| {
        let at = ((i * MOST_WORDS) as u64).to_le_bytes();
        at.into_iter().chain(piece.iter().flat_map(|w| w.to_le_bytes())).collect()
    };
    pieces.map(record).collect()
}

/// The answer itself; `full`: why everything is needed.
pub(crate) fn answer(full: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![u8::from(full.is_some())];
    bytes.extend(full.unwrap_or_default().bytes().take(MOST_REASON));
    bytes
}

/// One record of the way back; `None`: of an unknown kind.
pub(crate) fn parse_answer(kind: u8, mut payload: &[u8]) -> Result<Option<AnswerRecord>, RecordError> {
    let answer = match kind {
        kind::BLOCKS => {
            let at = u64::from_le_bytes(take(&mut payload)?);
            let at = usize::try_from(at).map_err(|_| RecordError::Short)?;
            let mut words = Vec::new();
            while !payload.is_empty() {
                words.push(u64::from_le_bytes(take(&mut payload)?));
            }
            AnswerRecord::Blocks { at, words }
        }
        kind::ANSWER => {
            let full = take::<1>(&mut payload)?[0] != 0;
            let why = &payload[..payload.len().min(MOST_REASON)];
            let why = || String::from_utf8_lossy(why).chars().filter(|c| !c.is_control()).collect();
            if full { AnswerRecord::Full(why()) } else { AnswerRecord::Changed }
        }
        kind::REACHED => AnswerRecord::Reached(Id(take(&mut payload)?)),
        _ => return Ok(None),
    };
    Ok(Some(answer))
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
        assert_eq!(Description::parse(&[9; 10]), Err(RecordError::Version(0x909)));
        assert_eq!(Description::parse(&[2, 0, 5]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[0; 23]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[1; 55]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[0; 56]), Err(RecordError::Short), "no point has no name");
        assert_eq!(parse_answer(9, &[]), Ok(None));
        assert_eq!(parse_answer(kind::BLOCKS, &[0; 9]), Err(RecordError::Short));
        assert_eq!(parse_answer(kind::REACHED, &[0; 15]), Err(RecordError::Short));
    }

    fn described(point: u8, previous: u8) -> Description {
        let (point, previous) = (Id([point; 16]), Id([previous; 16]));
        Description { size: 77, block: BLOCK, asks: true, point, previous }
    }

    #[test]
    fn what_is_told_arrives() {
        let told = described(3, 4);
        assert_eq!(Description::parse(&told.encode()), Ok(told));
        let summary = Tally::default().finish();
        for next in [None, Some(Next { id: Id([7; 16]), previous: Id::NONE })] {
            assert_eq!(parse_barrier(&barrier(summary, next)), Ok((summary, next)));
        }
        let blocks = Blocks::of(200_000 * 64 * 8, 8);
        blocks.insert(3..5);
        blocks.insert(190_000 * 64..190_000 * 64 + 1);
        let records = changed_records(&blocks);
        assert_eq!(records.len(), 2, "a piece without a block is not sent");
        let got = Blocks::of(200_000 * 64 * 8, 8);
        for record in records {
            let Ok(Some(AnswerRecord::Blocks { at, words })) = parse_answer(kind::BLOCKS, &record) else {
                panic!("not blocks")
            };
            words.into_iter().enumerate().for_each(|(i, w)| assert!(got.or_word(at + i, w)));
        }
        assert_eq!(got.ranges(), blocks.ranges());
        assert_eq!(parse_answer(kind::ANSWER, &answer(None)), Ok(Some(AnswerRecord::Changed)));
        let full = AnswerRecord::Full("so".to_owned());
        assert_eq!(parse_answer(kind::ANSWER, &answer(Some("so"))), Ok(Some(full)));
    }

    #[test]
    fn a_resync_needs_a_point_in_common() {
        let id = |n| Id([n; 16]);
        assert_eq!(described(3, 0).why_full(id(3), id(0)), None);
        assert_eq!(described(3, 0).why_full(id(4), id(3)), None, "the standby is one ahead");
        assert_eq!(described(4, 3).why_full(id(3), id(0)), None, "it was, and has taken over");
        for (primary, standby) in [((0, 0), (0, 0)), ((3, 0), (0, 0)), ((0, 0), (3, 0)), ((3, 1), (4, 1))] {
            assert!(described(primary.0, primary.1).why_full(id(standby.0), id(standby.1)).is_some());
        }
        assert!(Description { block: 1, ..described(3, 0) }.why_full(id(3), id(0)).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..200), kind in 0..5_u8, len in 0..200_u64) {
            let bytes = [&head(kind, 0, len)[..], &bytes].concat();
            let all: Vec<_> = changes(&bytes, 200).collect();
            prop_assert!(all.len() <= bytes.len());
            let _ = Summary::parse(&bytes);
            let _ = Description::parse(&bytes);
            let _ = parse_barrier(&bytes);
            let _ = parse_answer(kind, &bytes);
        }
    }
}
