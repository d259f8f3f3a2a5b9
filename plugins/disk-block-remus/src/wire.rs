//! The records of a disk's channel. Integers are little-endian.
//!
//! ```text
//! Describe   version u16, size u64                                     first, once
//! Changes    { kind u8, offset u64, length u64, data }*                in the order of the primary's image
//! Copied                                                               once, after the initial copy
//! Barrier    changes u64, bytes u64, checksum u64                      ends an epoch; carries its number
//! ```
//! Changes and sums are those of [`aventine_disk_common::change`].

use aventine_disk_common::change::take;
pub(crate) use aventine_disk_common::change::{
    Arrived, Change, MAX_CHANGE, RecordError, Summary, Tally, changes,
};

/// The version of this layout.
const VERSION: u16 = 1;

/// Kinds of records.
pub(crate) mod kind {
    pub(crate) const DESCRIBE: u8 = 1;
    pub(crate) const CHANGES: u8 = 2;
    pub(crate) const COPIED: u8 = 3;
    pub(crate) const BARRIER: u8 = 4;
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
        return Err(RecordError::Version { theirs: version, ours: VERSION });
    }
    let size = u64::from_le_bytes(take(&mut payload)?);
    if payload.is_empty() { Ok(size) } else { Err(RecordError::Short) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parse_description(&[9; 10]), Err(RecordError::Version { theirs: 0x909, ours: VERSION }));
        assert_eq!(parse_description(&describe(77)), Ok(77));
        assert_eq!(parse_description(&[1, 0, 5]), Err(RecordError::Short));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..20)) {
            let _ = parse_description(&bytes);
        }
    }
}
