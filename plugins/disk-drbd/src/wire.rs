//! The records of a disk's channel. Integers are little-endian.
//!
//! ```text
//! Describe   version u16, size u64, resource's name                    first, once
//! Changes    { kind u8, offset u64, length u64, data }*                in the order of the guest's writes
//! Barrier    changes u64, bytes u64, checksum u64                      ends an epoch; carries its number
//! Both       epoch u64                                                 DRBD has all up to this epoch on both sides
//! ```
//! Changes and sums are those of [`aventine_disk_common::change`]. A `Both` stands anywhere behind its epoch's barrier.

use aventine_api::Epoch;
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
    pub(crate) const BARRIER: u8 = 3;
    pub(crate) const BOTH: u8 = 4;
}

/// What the first record says: the disk's size and its resource.
pub(crate) fn describe(size: u64, resource: &str) -> Vec<u8> {
    [&VERSION.to_le_bytes()[..], &size.to_le_bytes(), resource.as_bytes()].concat()
}

/// Reads the first record.
pub(crate) fn parse_description(mut payload: &[u8]) -> Result<(u64, String), RecordError> {
    let theirs = u16::from_le_bytes(take(&mut payload)?);
    if theirs != VERSION {
        return Err(RecordError::Version { theirs, ours: VERSION });
    }
    let size = u64::from_le_bytes(take(&mut payload)?);
    Ok((size, String::from_utf8_lossy(payload).into_owned()))
}

/// The epoch of a `Both`.
pub(crate) fn parse_both(mut payload: &[u8]) -> Result<Epoch, RecordError> {
    let epoch = u64::from_le_bytes(take(&mut payload)?);
    if payload.is_empty() { Ok(Epoch(epoch)) } else { Err(RecordError::Short) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_description_comes_back() {
        assert_eq!(parse_description(&describe(77, "r0")), Ok((77, "r0".to_owned())));
        assert_eq!(parse_description(&[9; 10]), Err(RecordError::Version { theirs: 0x909, ours: VERSION }));
        assert_eq!(parse_description(&[1, 0, 5]), Err(RecordError::Short));
        assert_eq!(parse_both(&7_u64.to_le_bytes()), Ok(Epoch(7)));
        assert_eq!(parse_both(&[0; 9]), Err(RecordError::Short));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..20)) {
            let _ = (parse_description(&bytes), parse_both(&bytes));
        }
    }
}
