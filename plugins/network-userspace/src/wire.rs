//! Records on a network's channel: copies of frames, and what a checkpoint covers. Integers are little-endian.
//!
//! | kind | payload |
//! |---|---|
//! | 1, 2: frames to, from the guest | `u64` number of the first, then for each frame `u32` length and its bytes |
//! | 3: seal | `u64` to the guest, `u64` from the guest, `u64` epoch released |

use crate::port::FRAME_LIMIT;
use aventine_api::{Epoch, RecordHead};

/// Most bytes of a record's payload.
pub(crate) const RECORD_LIMIT: usize = 256 << 10;
/// Ethernet's header.
pub(crate) const FRAME_LEAST: usize = 14;
const SEAL: u8 = 3;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    ToGuest = 1,
    FromGuest = 2,
}

/// What a checkpoint covers. Frames of each way are numbered from 0 in each session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) epoch: Epoch,
    /// The guest has taken the frames before this one.
    pub(crate) to_guest: u64,
    /// The guest had sent the frames before this one.
    pub(crate) from_guest: u64,
    /// The newest epoch that was released by then: the standby had acknowledged it.
    pub(crate) released: Epoch,
}

impl Seal {
    pub(crate) fn head(&self) -> RecordHead {
        RecordHead { epoch: self.epoch, kind: SEAL }
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        [self.to_guest, self.from_guest, self.released.0].iter().flat_map(|n| n.to_le_bytes()).collect()
    }
}

/// Frames in a row, as they are sent.
pub(crate) struct Frames {
    pub(crate) way: Way,
    pub(crate) count: u64,
    first: u64,
    pub(crate) payload: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(way: Way, first: u64) -> Frames {
        Frames { way, count: 0, first, payload: first.to_le_bytes().to_vec() }
    }

    /// Whether the frame of this number and length may be added.
    pub(crate) fn continues(&self, way: Way, number: u64, length: usize) -> bool {
        self.way == way
            && self.first + self.count == number
            && self.payload.len() + 4 + length <= RECORD_LIMIT
    }

    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.payload.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        self.payload.extend_from_slice(frame);
        self.count += 1;
    }

    /// Bytes of the frames alone.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() - 8 - 4 * self.count as usize
    }

    pub(crate) fn head(&self) -> RecordHead {
        RecordHead { epoch: Epoch::COPY, kind: self.way as u8 }
    }
}

/// A record that the primary's plugin did not send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("A record of the unknown kind {0}")]
    Kind(u8),
    #[error("A record of kind {kind} with {length} bytes, which it cannot have")]
    Length { kind: u8, length: usize },
    #[error("A copied frame of {0} bytes was announced; one has {FRAME_LEAST} to {FRAME_LIMIT}")]
    Frame(usize),
    #[error("Frame or epoch {got} was copied after {before}")]
    Order { got: u64, before: u64 },
}

/// A record that arrived. Each frame is given with its number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Frames(Way, Vec<(u64, &'a [u8])>),
    Seal(Seal),
}

impl Record<'_> {
    pub(crate) fn decode(head: RecordHead, payload: &[u8]) -> Result<Record<'_>, RecordError> {
        let wrong = RecordError::Length { kind: head.kind, length: payload.len() };
        let way = match head.kind {
            1 => Way::ToGuest,
            2 => Way::FromGuest,
            SEAL => {
                let (words, []) = payload.as_chunks::<8>() else { return Err(wrong) };
                let &[to_guest, from_guest, released] = words else { return Err(wrong) };
                let [to_guest, from_guest, released] =
                    [to_guest, from_guest, released].map(u64::from_le_bytes);
                let released = Epoch(released);
                return Ok(Record::Seal(Seal { epoch: head.epoch, to_guest, from_guest, released }));
            }
            other => return Err(RecordError::Kind(other)),
        };
        let Some((first, mut rest)) =
            payload.split_first_chunk::<8>().filter(|_| payload.len() <= RECORD_LIMIT)
        else {
            return Err(wrong);
        };
        let (mut number, mut frames) = (u64::from_le_bytes(*first), Vec::new());
        while !rest.is_empty() {
            let Some((length, after)) = rest.split_first_chunk::<4>() else { return Err(wrong) };
            let length = u32::from_le_bytes(*length) as usize;
            if !(FRAME_LEAST..=FRAME_LIMIT).contains(&length) {
                return Err(RecordError::Frame(length));
            }
            let Some((frame, after)) = after.split_at_checked(length) else { return Err(wrong) };
            frames.push((number, frame));
            number = number.checked_add(1).ok_or(RecordError::Order { got: 0, before: number })?;
            rest = after;
        }
        Ok(Record::Frames(way, frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_come_back() {
        let mut frames = Frames::new(Way::FromGuest, 7);
        let sent = [vec![1; 60], vec![2; 14], vec![3; FRAME_LIMIT]];
        for (n, frame) in sent.iter().enumerate() {
            assert!(frames.continues(Way::FromGuest, 7 + n as u64, frame.len()));
            frames.add(frame);
        }
        assert!(!frames.continues(Way::ToGuest, 10, 60) && !frames.continues(Way::FromGuest, 11, 60));
        assert!(!frames.continues(Way::FromGuest, 10, RECORD_LIMIT - frames.payload.len()));
        let Ok(Record::Frames(Way::FromGuest, came)) = Record::decode(frames.head(), &frames.payload) else {
            panic!("frames")
        };
        assert_eq!(came, [(7, &sent[0][..]), (8, &sent[1]), (9, &sent[2])]);
        let seal = Seal { epoch: Epoch(4), to_guest: 5, from_guest: 6, released: Epoch(3) };
        assert_eq!(Record::decode(seal.head(), &seal.payload()), Ok(Record::Seal(seal)));
    }

    #[test]
    fn refusals_name_their_cause() {
        let decode = |kind, payload: &[u8]| {
            Record::decode(RecordHead { epoch: Epoch(1), kind }, payload).err().unwrap()
        };
        assert_eq!(decode(9, &[]), RecordError::Kind(9));
        assert_eq!(decode(SEAL, &[0; 25]), RecordError::Length { kind: SEAL, length: 25 });
        assert_eq!(decode(1, &[0; 7]), RecordError::Length { kind: 1, length: 7 });
        assert_eq!(decode(1, &vec![0; RECORD_LIMIT + 1]).to_string().split(' ').nth(4), Some("1"));
        let with_length = |length: u32| [&[0; 8][..], &length.to_le_bytes(), &[0; 20]].concat();
        assert_eq!(decode(2, &with_length(13)), RecordError::Frame(13));
        assert_eq!(decode(2, &with_length(u32::MAX)), RecordError::Frame(u32::MAX as usize));
        assert_eq!(decode(2, &with_length(21)), RecordError::Length { kind: 2, length: 32 });
        let mut last = Frames::new(Way::ToGuest, u64::MAX);
        last.add(&[0; 60]);
        assert_eq!(decode(1, &last.payload), RecordError::Order { got: 0, before: u64::MAX });
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(kind in 0u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(RecordHead { epoch: Epoch(1), kind }, &bytes);
        }
    }
}
