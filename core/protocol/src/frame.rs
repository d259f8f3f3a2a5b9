//! The frame: what stands before every payload on every channel.
//!
//! ```text
//!  0      4       6    7     8            16       20        24             32             40
//!  ├──────┼───────┼────┼─────┼────────────┼────────┼─────────┼──────────────┼──────────────┤
//!  │magic │version│kind│ sub │   epoch    │ length │sequence │ payload xxh3 │ header xxh3  │  payload …
//!  └──────┴───────┴────┴─────┴────────────┴────────┴─────────┴──────────────┴──────────────┘
//! ```
//! Little-endian. The header is checked before its length is believed, the length before anything is allocated. The
//! sequence counts the frames of one direction of a channel, so that a lost or repeated frame is noticed.

use crate::audit::AUDIT_LIMIT;
use aventine_api::{Epoch, MAX_RECORD};
use std::hash::Hasher;
use twox_hash::XxHash3_64;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 40;
/// The version of frames and messages; both sides must speak the same.
pub const VERSION: u16 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"AVNT");

/// What a frame carries. Zero is no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A [`crate::Message`] on `control`.
    Message = 1,
    /// Encoded pages on `pages`.
    Pages = 2,
    /// The device state on `pages`.
    State = 3,
    /// The end of a checkpoint on `pages`: a [`crate::CheckpointEnd`].
    CheckpointEnd = 4,
    /// A record of a plugin on `disk:ID` or `net:ID`; `sub` is the plugin's own kind.
    Record = 5,
    /// Hashes of a slice of guest memory on `pages`, part of a checkpoint: a [`crate::AuditRecord`].
    Audit = 6,
}

impl FrameKind {
    /// Most bytes of payload that a frame of this kind may have.
    pub fn limit(self) -> usize {
        match self {
            FrameKind::Message => 64 << 10,
            FrameKind::Pages => 2 << 20,
            FrameKind::State => 64 << 20,
            FrameKind::CheckpointEnd => 64,
            FrameKind::Record => MAX_RECORD,
            FrameKind::Audit => AUDIT_LIMIT,
        }
    }

    fn from_byte(byte: u8) -> Option<FrameKind> {
        [Self::Message, Self::Pages, Self::State, Self::CheckpointEnd, Self::Record, Self::Audit]
            .into_iter()
            .find(|&k| k as u8 == byte)
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// The plugin's kind of record, otherwise 0.
    pub sub: u8,
    /// The epoch the payload belongs to.
    pub epoch: Epoch,
    /// Bytes of payload.
    pub length: u32,
    /// Number of the frame on its channel, from 0.
    pub sequence: u32,
    /// [`PayloadHash`] of the payload.
    pub payload_hash: u64,
}

/// Why a frame was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("The stream does not hold Aventine frames (found {0:#010x} where the magic number belongs)")]
    Magic(u32),
    /// Another version of the protocol.
    #[error(
        "The other side speaks version {0} of the protocol and this side {VERSION}: run the same release on both hosts"
    )]
    Version(u16),
    /// A damaged header.
    #[error("The frame's header is damaged (checksum)")]
    Header,
    /// A kind that this version does not know.
    #[error("The frame has the unknown kind {0}")]
    Kind(u8),
    /// A length over the kind's limit.
    #[error("A frame of kind {kind:?} with {length} bytes is over the limit of {limit}")]
    Length {
        /// The kind.
        kind: FrameKind,
        /// The length it claims.
        length: u32,
        /// The most allowed.
        limit: usize,
    },
    /// A frame was lost, repeated or reordered.
    #[error("Frame {got} arrived where frame {expected} was due")]
    Sequence {
        /// Its number.
        got: u32,
        /// The number due.
        expected: u32,
    },
    /// A damaged payload.
    #[error("The payload of a frame of kind {0:?} is damaged (checksum)")]
    Payload(FrameKind),
}

impl FrameHeader {
    /// The header for a payload that is the concatenation of `parts`.
    pub fn of(kind: FrameKind, sub: u8, epoch: Epoch, sequence: u32, parts: &[&[u8]]) -> FrameHeader {
        let length = parts.iter().map(|p| p.len()).sum::<usize>();
        assert!(length <= kind.limit(), "a frame of {kind:?} with {length} bytes");
        FrameHeader {
            kind,
            sub,
            epoch,
            length: length as u32,
            sequence,
            payload_hash: PayloadHash::of(parts),
        }
    }

    /// The bytes for the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..6].copy_from_slice(&VERSION.to_le_bytes());
        b[6] = self.kind as u8;
        b[7] = self.sub;
        b[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        b[16..20].copy_from_slice(&self.length.to_le_bytes());
        b[20..24].copy_from_slice(&self.sequence.to_le_bytes());
        b[24..32].copy_from_slice(&self.payload_hash.to_le_bytes());
        let hash = XxHash3_64::oneshot(&b[..32]);
        b[32..].copy_from_slice(&hash.to_le_bytes());
        b
    }

    /// Checks and decodes a header; `sequence` is the number that is due on this channel.
    pub fn decode(b: &[u8; HEADER_LEN], sequence: u32) -> Result<FrameHeader, FrameError> {
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(FrameError::Magic(u32_at(0)));
        }
        // The version comes before the checksum: another version may check differently.
        let version = u16::from_le_bytes([b[4], b[5]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if u64_at(32) != XxHash3_64::oneshot(&b[..32]) {
            return Err(FrameError::Header);
        }
        let kind = FrameKind::from_byte(b[6]).ok_or(FrameError::Kind(b[6]))?;
        let length = u32_at(16);
        if length as usize > kind.limit() {
            return Err(FrameError::Length { kind, length, limit: kind.limit() });
        }
        let got = u32_at(20);
        if got != sequence {
            return Err(FrameError::Sequence { got, expected: sequence });
        }
        Ok(FrameHeader {
            kind,
            sub: b[7],
            epoch: Epoch(u64_at(8)),
            length,
            sequence: got,
            payload_hash: u64_at(24),
        })
    }

    /// Checks a payload that was read for this header.
    pub fn verify(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() == self.length as usize && PayloadHash::of(&[payload]) == self.payload_hash {
            Ok(())
        } else {
            Err(FrameError::Payload(self.kind))
        }
    }
}

/// The checksum of payloads: XXH3, 64 bits. It finds damage, not forgery: that is the transport's task.
pub struct PayloadHash;

impl PayloadHash {
    /// The hash of the concatenation of `parts`.
    pub fn of(parts: &[&[u8]]) -> u64 {
        if let [only] = parts {
            return XxHash3_64::oneshot(only);
        }
        let mut hash = XxHash3_64::new();
        parts.iter().for_each(|p| hash.write(p));
        hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> FrameHeader {
        FrameHeader::of(FrameKind::Pages, 0, Epoch(7), 3, &[b"ab", b"cde"])
    }

    #[test]
    fn parts_hash_like_their_concatenation() {
        assert_eq!(PayloadHash::of(&[b"ab", b"", b"cde"]), PayloadHash::of(&[b"abcde"]));
        header().verify(b"abcde").unwrap();
        assert_eq!(header().verify(b"abcdf"), Err(FrameError::Payload(FrameKind::Pages)));
        assert_eq!(header().verify(b"abcd"), Err(FrameError::Payload(FrameKind::Pages)));
    }

    #[test]
    fn refusals_name_their_cause() {
        let good = header().encode();
        assert_eq!(FrameHeader::decode(&good, 3), Ok(header()));
        assert_eq!(FrameHeader::decode(&good, 4), Err(FrameError::Sequence { got: 3, expected: 4 }));
        let mut other = good;
        other[4] = 9;
        assert_eq!(FrameHeader::decode(&other, 3), Err(FrameError::Version(9)));
        let long = FrameHeader { length: 3 << 20, ..header() };
        assert!(matches!(FrameHeader::decode(&long.encode(), 3), Err(FrameError::Length { .. })));
    }

    proptest! {
        #[test]
        fn every_damaged_bit_of_a_header_is_found(bit in 0..HEADER_LEN * 8) {
            let mut b = header().encode();
            b[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameHeader::decode(&b, 3).is_err());
        }

        #[test]
        fn hostile_headers_are_refused(b in proptest::array::uniform32(any::<u8>()), rest in any::<u64>()) {
            let mut header = [0; HEADER_LEN];
            header[..32].copy_from_slice(&b);
            header[32..].copy_from_slice(&rest.to_le_bytes());
            prop_assert!(FrameHeader::decode(&header, 0).is_err());
        }
    }
}
