//! The primary's half: hashes a slice of guest memory while the guest runs, for the next checkpoint.
//!
//! ```text
//!             begin(n-1)                 seal(n)                    sent
//!  slice: free ──────► open: being hashed ──────► sealed: with the sender ──► free
//!                            └─ by the thread until it is through or the slice is sealed
//! ```
//! A slice is free when nobody else holds it. The thread, which may find out late that the slice was sealed, writes only
//! hashes past those that the seal took.

use super::{Book, Divergence, Hasher, slice_pages, thread_time};
use crate::control::AuditStatus;
use crate::memory::GuestMemory;
use aventine_api::{Epoch, PAGE_SIZE, PageRun};
use aventine_protocol::{AUDIT_PAGES, AuditRecord};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tracing::warn;

/// Pages being hashed.
struct Slice {
    first: u64,
    pages: usize,
    hashes: Box<[AtomicU64]>,
    /// How many hashes, from the first on, are there.
    done: AtomicUsize,
    sealed: AtomicBool,
}

impl Slice {
    fn new(most: u64) -> Slice {
        let hashes = (0..most).map(|_| AtomicU64::new(0)).collect();
        Slice { first: 0, pages: 0, hashes, done: AtomicUsize::new(0), sealed: AtomicBool::new(false) }
    }

    fn reset(&mut self, first: u64, pages: u64) {
        (self.first, self.pages) = (first, pages as usize);
        *self.done.get_mut() = 0;
        *self.sealed.get_mut() = false;
    }

    /// Ends the hashing; answers how many pages are hashed.
    fn seal(&self) -> usize {
        self.sealed.store(true, Ordering::Relaxed);
        self.done.load(Ordering::Acquire)
    }

    /// Hashes until every page is done or the slice is sealed.
    fn hash(&self, memory: &GuestMemory, hasher: &mut Hasher) {
        let mut at = 0;
        while at < self.pages && !self.sealed.load(Ordering::Relaxed) {
            for hash in hasher.block(memory, self.first + at as u64, self.pages - at) {
                self.hashes[at].store(hash, Ordering::Relaxed);
                at += 1;
            }
            self.done.store(at, Ordering::Release);
        }
    }
}

/// The hashed part of a slice, for one checkpoint.
pub(crate) struct Sealed {
    slice: Arc<Slice>,
    pages: usize,
}

impl Sealed {
    /// Pages of the checkpoint, as they were captured: what was hashed of them before may be older.
    pub(crate) fn captured(&self, runs: &[PageRun<'_>]) {
        for run in runs {
            for (page, data) in (run.first_page..).zip(run.data.chunks_exact(PAGE_SIZE)) {
                let position = page.checked_sub(self.slice.first).filter(|&i| i < self.pages as u64);
                if let Some(position) = position {
                    self.slice.hashes[position as usize].store(AuditRecord::hash(data), Ordering::Relaxed);
                }
            }
        }
    }

    /// Calls `send` with each frame's payload, in order.
    pub(crate) fn frames<E>(&self, mut send: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let (mut first, mut payload) = (self.slice.first, Vec::new());
        for hashes in self.slice.hashes[..self.pages].chunks(AUDIT_PAGES) {
            AuditRecord::encode(first, hashes.iter().map(|h| h.load(Ordering::Relaxed)), &mut payload);
            send(&payload)?;
            first += hashes.len() as u64;
        }
        Ok(())
    }
}

/// Hashes slice after slice, and keeps the book about what the standby found.
pub(crate) struct Auditor {
    guest_pages: u64,
    slice_pages: u64,
    /// Where the next slice begins.
    next: u64,
    /// The slice for the checkpoint of this epoch.
    open: Option<(Epoch, Arc<Slice>)>,
    /// All slices: no more than epochs can be in flight, and two.
    slices: Vec<Arc<Slice>>,
    /// Sealed, and the standby has not answered for it: epoch, first page, pages.
    unanswered: VecDeque<(Epoch, u64, u64)>,
    tasks: Option<Sender<Arc<Slice>>>,
    thread: Option<JoinHandle<()>>,
    /// Nanoseconds of processor time that the thread has spent.
    spent: Arc<AtomicU64>,
    book: Book,
}

impl Auditor {
    /// Audits all of `memory` within every `every` epochs. `memory` is used until the answer is dropped.
    pub(crate) fn start(memory: GuestMemory, every: u32) -> Auditor {
        let guest_pages = memory.pages();
        let (tasks, todo) = channel();
        let spent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&spent);
        Auditor {
            guest_pages,
            slice_pages: slice_pages(guest_pages, every),
            next: 0,
            open: None,
            slices: Vec::new(),
            unanswered: VecDeque::new(),
            tasks: Some(tasks),
            thread: Some(thread::spawn(move || hash_all(&todo, &memory, &counter))),
            spent,
            book: Book::new(every, guest_pages, None),
        }
    }

    /// Guest paused, after the dirty scan of `epoch`: what belongs into its checkpoint. Waits for nothing. The first epoch
    /// of a session begins everything anew.
    pub(crate) fn seal(&mut self, epoch: Epoch) -> Option<Sealed> {
        let open = self.open.take().map(|(due, slice)| (due, slice.seal(), slice));
        if epoch == Epoch::FIRST {
            self.next = 0;
            self.unanswered.clear();
            self.book.begin_session(self.spent());
            return None;
        }
        let (_, pages, slice) = open.filter(|&(due, pages, _)| due == epoch && pages > 0)?;
        let end = slice.first + pages as u64;
        self.unanswered.push_back((epoch, slice.first, pages as u64));
        self.next = if end == self.guest_pages { 0 } else { end };
        Some(Sealed { slice, pages })
    }

    /// The guest runs after the checkpoint of `epoch`: the slice of the next epoch is hashed from now on.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        let pages = self.slice_pages.min(self.guest_pages - self.next);
        let free = self.slices.iter_mut().position(|slice| Arc::get_mut(slice).is_some());
        let position = free.unwrap_or_else(|| {
            self.slices.push(Arc::new(Slice::new(self.slice_pages)));
            self.slices.len() - 1
        });
        let Some(slice) = Arc::get_mut(&mut self.slices[position]) else { return };
        slice.reset(self.next, pages);
        let slice = &self.slices[position];
        self.open = Some((epoch.next(), Arc::clone(slice)));
        if let Some(tasks) = &self.tasks
            && tasks.send(Arc::clone(slice)).is_err()
        {
            warn!("the audit's thread has panicked: nothing more is audited");
            self.tasks = None;
        }
    }

    /// The standby has acknowledged `epoch`: all before it was equal.
    pub(crate) fn acknowledged(&mut self, epoch: Epoch) {
        while let Some(&(answered, first, pages)) = self.unanswered.front().filter(|u| u.0 < epoch) {
            self.unanswered.pop_front();
            self.book.equal(answered, first, pages);
        }
    }

    /// The standby says that something differs.
    pub(crate) fn diverged(&mut self, found: &Divergence) {
        self.book.different(found);
    }

    /// Waits until the open slice is hashed.
    #[cfg(test)]
    pub(super) fn await_hashed(&self) {
        while self.open.as_ref().is_some_and(|(_, s)| s.done.load(Ordering::Acquire) < s.pages) {
            thread::yield_now();
        }
    }

    pub(crate) fn status(&self) -> AuditStatus {
        self.book.status(self.spent())
    }

    fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }
}

impl Drop for Auditor {
    /// Ends the thread: it uses the guest's memory.
    fn drop(&mut self) {
        self.tasks = None;
        for slice in &self.slices {
            slice.seal();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the audit's thread panicked");
        }
    }
}

/// The thread: hashes slices in the order of their coming.
fn hash_all(todo: &Receiver<Arc<Slice>>, memory: &GuestMemory, spent: &AtomicU64) {
    let mut hasher = Hasher::new();
    for slice in todo {
        let start = thread_time();
        slice.hash(memory, &mut hasher);
        drop(slice);
        let time = thread_time().saturating_sub(start);
        spent.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
