//! The payload of an audit's frame: the hashes of consecutive guest pages as they were at a checkpoint.
//!
//! ```text
//!  0            8            16
//!  ├────────────┼────────────┼─── …
//!  │ first page │ its hash   │ the next page's hash …
//!  └────────────┴────────────┴─── …
//! ```
//! Little-endian, one hash for each page. A checkpoint holds as many of these frames as its slice of memory needs.

use crate::{MessageError, PayloadHash};

/// Most pages whose hashes fit one frame: those of 256 MiB.
pub const AUDIT_PAGES: usize = 64 << 10;
/// Most pages that [`crate::Message::Diverged`] names.
pub const AUDIT_NAMED: usize = 64;
const HASH: usize = size_of::<u64>();
/// Most bytes of the payload.
pub(crate) const AUDIT_LIMIT: usize = HASH * (1 + AUDIT_PAGES);

/// A decoded payload, which stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRecord<'a> {
    /// The first page's number.
    pub first_page: u64,
    hashes: &'a [[u8; HASH]],
}

impl<'a> AuditRecord<'a> {
    /// What is hashed of a page, on both sides.
    pub fn hash(page: &[u8]) -> u64 {
        PayloadHash::of(&[page])
    }

    /// Replaces `payload` with the payload for `hashes`, at most [`AUDIT_PAGES`] of them.
    pub fn encode(first_page: u64, hashes: impl Iterator<Item = u64>, payload: &mut Vec<u8>) {
        payload.clear();
        payload.extend(first_page.to_le_bytes());
        hashes.for_each(|hash| payload.extend(hash.to_le_bytes()));
    }

    /// Decodes a payload of at least one hash, all of them of pages below `guest_pages`.
    pub fn decode(payload: &'a [u8], guest_pages: u64) -> Result<AuditRecord<'a>, MessageError> {
        let (first_page, hashes) = payload.split_first_chunk().ok_or(MessageError)?;
        let record = match hashes.as_chunks() {
            ([], _) => return Err(MessageError),
            (hashes, []) => AuditRecord { first_page: u64::from_le_bytes(*first_page), hashes },
            _ => return Err(MessageError),
        };
        let inside = record.first_page.checked_add(record.pages()).is_some_and(|end| end <= guest_pages);
        if inside { Ok(record) } else { Err(MessageError) }
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// The pages' hashes, in order.
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.hashes.iter().map(|hash| u64::from_le_bytes(*hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hashes_survive_the_wire() {
        let mut payload = vec![1, 2, 3];
        AuditRecord::encode(7, [5, 6, u64::MAX].into_iter(), &mut payload);
        let record = AuditRecord::decode(&payload, 10).unwrap();
        assert_eq!((record.first_page, record.pages()), (7, 3));
        assert_eq!(record.hashes().collect::<Vec<_>>(), [5, 6, u64::MAX]);
    }

    #[test]
    fn pages_outside_the_guest_and_odd_lengths_are_refused() {
        let mut payload = Vec::new();
        AuditRecord::encode(7, [5, 6, 7].into_iter(), &mut payload);
        assert_eq!(AuditRecord::decode(&payload, 9), Err(MessageError));
        assert_eq!(AuditRecord::decode(&payload[..31], 10), Err(MessageError));
        assert_eq!(AuditRecord::decode(&payload[..8], 10), Err(MessageError), "no hash at all");
        AuditRecord::encode(u64::MAX, [5].into_iter(), &mut payload);
        assert_eq!(AuditRecord::decode(&payload, u64::MAX), Err(MessageError));
    }

    proptest! {
        #[test]
        fn hostile_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..100), pages in any::<u64>()) {
            if let Ok(record) = AuditRecord::decode(&payload, pages) {
                let mut again = Vec::new();
                AuditRecord::encode(record.first_page, record.hashes(), &mut again);
                prop_assert_eq!(again, payload);
            }
        }
    }
}
