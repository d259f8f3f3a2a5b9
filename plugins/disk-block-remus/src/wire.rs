//! The records of a disk's channel. Integers are little-endian.
//!
//! ```text
//! Describe   version u16, size u64, block u64, asks u8,                first, once
//!            point 16, previous 16
//! Changes    { kind u8, offset u64, length u64, data }*                in the order of the primary's image
//! Copied                                                               once, after the initial copy
//! Check      offset u64, length u64, sum 16                            what the range holds at this place in the order
//! Barrier    changes u64, bytes u64, checksum u64                      ends an epoch; carries its number
//!            [, point 16, previous 16]                                 both images agree here: see `history`
//! ```
//! Changes and sums are those of [`aventine_disk_common::change`]. On the way back, where the primary asks for it:
//! ```text
//! Blocks     at u64, words u64*                                        blocks that the standby has changed: none or more
//! Answer     mode u8, reason                                           once: only changed blocks are needed (0), or all (1)
//! Reached    point 16                                                  it is in the standby's metadata
//! Compared   differs u8*                                               an epoch's checks, in their order
//! ```

use crate::blocks::{Blocks, block_of};
use crate::history::Next;
use crate::meta::Id;
use aventine_disk_common::change::take;
pub(crate) use aventine_disk_common::change::{
    Arrived, Change, MAX_CHANGE, RecordError, Summary, Tally, changes,
};
use twox_hash::XxHash3_128;

/// The version of this layout.
const VERSION: u16 = 2;

/// Kinds of records.
pub(crate) mod kind {
    pub(crate) const DESCRIBE: u8 = 1;
    pub(crate) const CHANGES: u8 = 2;
    pub(crate) const COPIED: u8 = 3;
    pub(crate) const BARRIER: u8 = 4;
    pub(crate) const CHECK: u8 = 5;

    pub(crate) const BLOCKS: u8 = 1;
    pub(crate) const ANSWER: u8 = 2;
    pub(crate) const REACHED: u8 = 3;
    pub(crate) const COMPARED: u8 = 4;
}

/// A range, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) sum: u128,
}

impl Check {
    pub(crate) fn of(offset: u64, data: &[u8]) -> Check {
        Check { offset, len: data.len(), sum: XxHash3_128::oneshot(data) }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.offset.to_le_bytes().to_vec();
        bytes.extend((self.len as u64).to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes
    }

    /// For a disk of `size` bytes.
    pub(crate) fn parse(mut payload: &[u8], size: u64) -> Result<Check, RecordError> {
        let offset = u64::from_le_bytes(take(&mut payload)?);
        let len = u64::from_le_bytes(take(&mut payload)?);
        let sum = u128::from_le_bytes(take(&mut payload)?);
        let fits = offset.checked_add(len).is_some_and(|end| end <= size) && len <= MAX_CHANGE as u64;
        match (payload, fits) {
            ([], true) => Ok(Check { offset, len: len as usize, sum }),
            ([], false) => Err(RecordError::Range { offset, len }),
            _ => Err(RecordError::Short),
        }
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
            return Err(RecordError::Version { theirs: version, ours: VERSION });
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
        } else if self.block != block_of(self.size) {
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
    Blocks {
        at: usize,
        words: Vec<u64>,
    },
    Changed,
    Full(String),
    Reached(Id),
    /// Whether each range differs.
    Compared(Vec<bool>),
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
        kind::COMPARED => AnswerRecord::Compared(payload.iter().map(|differs| *differs != 0).collect()),
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

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Description::parse(&[9; 10]), Err(RecordError::Version { theirs: 0x909, ours: VERSION }));
        assert_eq!(Description::parse(&[2, 0, 5]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[0; 23]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[1; 55]), Err(RecordError::Short));
        assert_eq!(parse_barrier(&[0; 56]), Err(RecordError::Short), "no point has no name");
        let check = Check::of(90, &[1; 10]);
        assert_eq!(Check::parse(&check.encode(), 100), Ok(check));
        assert_eq!(Check::parse(&check.encode(), 99), Err(RecordError::Range { offset: 90, len: 10 }));
        assert_eq!(Check::parse(&check.encode()[1..], 100), Err(RecordError::Short));
        let long = Check { offset: 0, len: MAX_CHANGE + 1, sum: 0 };
        assert!(matches!(Check::parse(&long.encode(), u64::MAX), Err(RecordError::Range { .. })));
        assert_eq!(parse_answer(9, &[]), Ok(None));
        assert_eq!(parse_answer(kind::BLOCKS, &[0; 9]), Err(RecordError::Short));
        assert_eq!(parse_answer(kind::REACHED, &[0; 15]), Err(RecordError::Short));
    }

    fn described(point: u8, previous: u8) -> Description {
        let (point, previous) = (Id([point; 16]), Id([previous; 16]));
        Description { size: 77, block: block_of(77), asks: true, point, previous }
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
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..200), kind in 0..5_u8) {
            let _ = Description::parse(&bytes);
            let _ = parse_barrier(&bytes);
            let _ = Check::parse(&bytes, 1 << 20);
            let _ = parse_answer(kind, &bytes);
        }
    }
}
