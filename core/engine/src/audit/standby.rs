//! The standby's half: compares the memory image, once an epoch is applied, with what the primary's checkpoint says.

use super::{Book, Divergence, Hasher, thread_time};
use crate::control::AuditStatus;
use crate::memory::GuestMemory;
use aventine_api::Epoch;
use aventine_protocol::{AUDIT_NAMED, AuditRecord};
use std::time::Duration;

/// Compares, and keeps the book about it.
pub(crate) struct Checker {
    hasher: Hasher,
    spent: Duration,
    book: Book,
}

impl Checker {
    /// For one session; goes on from what `before` says, which an earlier session left.
    pub(crate) fn new(every: u32, guest_pages: u64, before: Option<AuditStatus>) -> Checker {
        Checker { hasher: Hasher::new(), spent: Duration::ZERO, book: Book::new(every, guest_pages, before) }
    }

    /// Compares `memory`, to which `epoch` and nothing later was applied, with the checked payloads of its checkpoint. Takes
    /// as long as reading the slice does.
    pub(crate) fn check(
        &mut self,
        epoch: Epoch,
        payloads: &[Vec<u8>],
        memory: &GuestMemory,
    ) -> Result<(), Divergence> {
        let start = thread_time();
        let (mut total, mut pages) = (0, Vec::new());
        let records = payloads.iter().filter_map(|p| AuditRecord::decode(p, memory.pages()).ok());
        for record in records.clone() {
            let (mut at, mut theirs) = (record.first_page, record.hashes());
            while theirs.len() > 0 {
                for ours in self.hasher.block(memory, at, theirs.len()) {
                    if theirs.next() != Some(ours) {
                        total += 1;
                        pages.extend((pages.len() < AUDIT_NAMED).then_some(at));
                    }
                    at += 1;
                }
            }
        }
        self.spent += thread_time().saturating_sub(start);
        if total > 0 {
            let found = Divergence::new(epoch, total, &pages, memory);
            self.book.different(&found);
            return Err(found);
        }
        records.for_each(|record| self.book.equal(epoch, record.first_page, record.pages()));
        Ok(())
    }

    pub(crate) fn status(&self) -> AuditStatus {
        self.book.status(self.spent)
    }
}
