//! What this side knows of its image's past: since when both sides' images are the same, and but for which blocks.
//!
//! A **point** is a moment at which both images held the same, on stable storage; it has a random name. Each side notes the
//! blocks that it changed since, so where both know one point in common the images differ in noted blocks only.
//!
//! ```text
//!             (nothing)                                    (nothing)
//!                │ first point                                 │ receive
//!                ▼            the other side owns it           ▼
//!     ┌──────► active ─────────────────────────► outdated ─► copying ◄───┐
//!     │          ▲                                   receive   │         │ receive
//!     │          │ accept_outdated                             │ point   │
//!     │          └──────────────────────────────── outdated    ▼         │
//!     └───────────────────────────────────────────────────► following ───┘
//!                     activate, image on stable storage     (or accept_outdated)
//! ```
//! How a session moves on to the next point, while the guest runs:
//! ```text
//!  primary                                                   standby
//!   seal(n): changes from here on are noted in another window
//!   barrier(n) with the new point ───────────────────────►   … commits, applies n, brings its image to stable storage,
//!   brings its image to stable storage           ◄────────   writes the point into its metadata, says so
//!   writes the point, forgets the window before
//! ```
//! Invariants:
//! - A block is noted in memory, and its region marked on stable storage, before the image changes there. A region is marked
//!   once until the next point, however many writes it takes; writers that come meanwhile share the next mark.
//! - A region stays marked while it is changed between one point and the next: a guest that writes in the same places waits
//!   for no mark.
//! - Nothing is forgotten before both images, and the standby's metadata, are on stable storage. Whoever fails before that
//!   has noted more than needed, never less.
//! - The standby reaches a point first, and keeps the name of the one before for as long as the primary may have that.
//!   The primary keeps none: a standby with an older one has been restored from a backup.
//! - A side that changes no block notes none: while a standby follows, the primary's notes tell of both.

use crate::blocks::{Blocks, REGION, block_of, touched};
use crate::meta::{Current, Found, Head, Id, Meta, Place, ReplaceError, Role};
use aventine_disk_common::image::{Image, Stamp};
use aventine_disk_common::lock;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Why metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    #[error("Metadata {} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("Metadata {} could not be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("No random number can be had")]
    Random(#[source] io::Error),
    #[error("Metadata {} are damaged, or another version's, so whether image {} is the newest one is not known. If you \
        know that it is, delete the metadata", path.display(), image.display())]
    Damaged { path: PathBuf, image: PathBuf },
    #[error("Image {} holds part of a copy that a standby was receiving. Use the other host's image; or run this \
        host as the standby, which completes it", image.display())]
    Copying { image: PathBuf },
    #[error("Image {} was kept for a primary elsewhere and never taken over: it may be old, and between two epochs. \
        Use the primary's own image. If that is lost, `accept_outdated = \"{id}\"` under this disk starts the guest from \
        this one once", image.display())]
    Following { image: PathBuf, id: Id },
    #[error("Image {} is outdated: the other host took the guest over, and this one has writes that it never had. Run \
        this host as the standby, which brings the image up to date. If the other host's image is lost, \
        `accept_outdated = \"{id}\"` under this disk starts the guest from this one once", image.display())]
    Outdated { image: PathBuf, id: Id },
}

/// Which of the noted blocks stay noted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    /// Those of the open window.
    Open,
    Nothing,
}

/// The point that a barrier carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) id: Id,
    /// The one that the primary has until then.
    pub(crate) previous: Id,
}

pub(crate) struct History {
    place: Place,
    size: u64,
    /// Bytes of a block.
    block: u64,
    /// Changed blocks: those of the open window, and those of the one before while its point is on its way.
    windows: [Blocks; 2],
    open: AtomicUsize,
    /// Whether the open window has any.
    any: AtomicBool,
    points: Mutex<Points>,
    /// Whether there is a point that marks are needed for.
    marking: AtomicBool,
    /// Regions whose mark is on stable storage.
    marked: Blocks,
    /// Regions that somebody waits for.
    wanted: Blocks,
    /// Held while metadata are written.
    kept: Mutex<Kept>,
    /// Why an image that has metadata has no point.
    void: Option<&'static str>,
}

#[derive(Default)]
struct Points {
    /// For the next barrier to carry.
    offered: Option<Next>,
    /// Carried by a barrier and not reached.
    pending: Option<Id>,
}

struct Kept {
    head: Head,
    /// `None`: no metadata were written here, or which ones are there is not known.
    current: Option<Current>,
    /// Whether metadata were written here.
    written: bool,
}

impl History {
    /// The history of an image that a guest is to be started from.
    pub(crate) fn of_primary(
        place: Place,
        image: &Image,
        accept: Option<&str>,
    ) -> Result<History, HistoryError> {
        let meta = match place.read() {
            Ok(Found::Nothing) => return Ok(History::new(place, image, Role::Active, None)),
            Ok(Found::Meta(meta)) => *meta,
            Ok(Found::Damaged) => {
                let path = place.path().to_owned();
                return Err(HistoryError::Damaged { path, image: image.path().to_owned() });
            }
            Err(source) => return Err(HistoryError::Read { path: place.path().to_owned(), source }),
        };
        let id = meta.head.id;
        let accepted = accept == Some(id.to_string().as_str());
        let image_path = || image.path().to_owned();
        match meta.head.role {
            Role::Active => {}
            Role::Copying => return Err(HistoryError::Copying { image: image_path() }),
            Role::Following | Role::Outdated if accepted => {
                tracing::warn!(image = %image.path().display(), "an outdated image is started from, as was asked");
            }
            Role::Following => return Err(HistoryError::Following { image: image_path(), id }),
            Role::Outdated => return Err(HistoryError::Outdated { image: image_path(), id }),
        }
        let history = History::new(place, image, Role::Active, Some(meta));
        if let Some(why) = history.void {
            tracing::info!(image = %image.path().display(), why, "the next copy will be a full one");
        }
        let mut kept = lock(&history.kept);
        let head = kept.head;
        history.replace(&mut kept, head, Keep::All, false)?;
        drop(kept);
        Ok(history)
    }

    /// The history of a standby's image; `made`: just now.
    pub(crate) fn of_standby(place: Place, image: &Image, made: bool) -> Result<History, HistoryError> {
        let found = place.read();
        let failed = |source| HistoryError::Read { path: place.path().to_owned(), source };
        let (role, meta, void) = match found.map_err(failed)? {
            _ if made => (Role::Copying, None, None),
            Found::Nothing => (Role::Copying, None, None),
            Found::Damaged => (Role::Copying, None, Some("the standby's metadata are damaged")),
            Found::Meta(meta) => (meta.head.role, Some(*meta), None),
        };
        let history = History::new(place, image, role, meta);
        Ok(History { void: history.void.or(void), ..history })
    }

    fn new(place: Place, image: &Image, role: Role, meta: Option<Meta>) -> History {
        let (size, block, now) = (image.size(), block_of(image.size()), image.stamp());
        let stamp = Stamp { inode: now.inode, ..Stamp::default() };
        let fresh =
            Head { role, stamp, closed: false, size, id: Id::NONE, point: Id::NONE, previous: Id::NONE };
        let windows = [Blocks::of(size, block), Blocks::of(size, block)];
        let (mut head, mut void) = (fresh, None);
        if let Some(Meta { head: found, changed }) = meta {
            void = if found.size != size {
                Some("the image has another size than it had")
            } else if found.stamp.inode != now.inode {
                Some("the image is another file than it was")
            } else if found.closed && found.stamp != now {
                Some("the image was changed by something else than Aventine")
            } else if changed.is_none() {
                Some("the image's changes were noted by another version")
            } else {
                None
            };
            if let (None, Some(changed)) = (void, changed) {
                head = Head { point: found.point, previous: found.previous, ..fresh };
                windows[0].or(&changed);
            }
        }
        let any = windows[0].words().any(|w| w != 0);
        History {
            place,
            size,
            block,
            windows,
            open: AtomicUsize::new(0),
            any: AtomicBool::new(any),
            points: Mutex::default(),
            marking: AtomicBool::new(head.point.is_some()),
            marked: Blocks::of(size, REGION),
            wanted: Blocks::of(size, REGION),
            kept: Mutex::new(Kept { head, current: None, written: false }),
            void,
        }
    }

    /// Before a change of the image: on return it can be made. Waits for stable storage where the region was not changed
    /// since the last point.
    pub(crate) fn touch(&self, offset: u64, len: u64) -> Result<(), HistoryError> {
        // In this order: whoever clears the marks looks at the window after that.
        self.note(offset, len);
        let regions = touched(offset, len, REGION);
        if !self.marking.load(Ordering::SeqCst) || self.marked.contains(regions.clone()) {
            return Ok(());
        }
        self.wanted.insert(regions.clone());
        let mut kept = lock(&self.kept);
        if self.marked.contains(regions) {
            return Ok(());
        }
        let Some(current) = &kept.current else {
            // Marks what the windows have.
            let head = kept.head;
            return self.replace(&mut kept, head, Keep::All, true);
        };
        let wanted = self.wanted.take();
        let marked: Vec<_> = self.marked.words().collect();
        let words = wanted.iter().map(|(at, bits)| (*at, bits | marked[*at]));
        let done = current.mark(words);
        for (at, bits) in wanted {
            let to = if done.is_ok() { &self.marked } else { &self.wanted };
            to.or_word(at, bits);
        }
        done.map_err(|source| self.unwritten(source))
    }

    /// Notes a change in the open window, whichever that is by now.
    pub(crate) fn note(&self, offset: u64, len: u64) {
        if self.windows[self.open.load(Ordering::SeqCst)].insert(touched(offset, len, self.block)) {
            self.any.store(true, Ordering::SeqCst);
        }
    }

    /// Every block that was noted since the point.
    pub(crate) fn changed(&self) -> Blocks {
        let all = Blocks::of(self.size, self.block);
        self.windows.iter().for_each(|w| all.or(w));
        all
    }

    /// The point, and the one that the other side may have instead.
    pub(crate) fn points(&self) -> (Id, Id) {
        let head = lock(&self.kept).head;
        (head.point, head.previous)
    }

    /// Why there is no point though there are metadata.
    pub(crate) fn void(&self) -> Option<&'static str> {
        self.void
    }

    /// Primary: a session begins. A point that was on its way will not be reached.
    pub(crate) fn begin_session(&self) {
        let _kept = lock(&self.kept);
        let mut points = lock(&self.points);
        if points.pending.is_some() {
            let open = self.open.load(Ordering::SeqCst);
            // Nothing is missing from both at any time.
            self.windows[open].or(&self.windows[1 - open]);
            self.windows[1 - open].clear();
            self.any.store(true, Ordering::SeqCst);
        }
        *points = Points::default();
    }

    /// Primary: the next barrier may carry a point.
    pub(crate) fn offer(&self) -> Result<(), HistoryError> {
        let (id, kept) = (Id::random().map_err(HistoryError::Random)?, lock(&self.kept));
        lock(&self.points).offered = Some(Next { id, previous: kept.head.point });
        Ok(())
    }

    /// Primary, in the pause: begins a window where a point is due. Never waits. `first`: also where nothing has changed.
    pub(crate) fn turn(&self, first: bool) -> Option<Next> {
        let mut points = lock(&self.points);
        if points.pending.is_some() || !(first || self.any.load(Ordering::SeqCst)) {
            return None;
        }
        let next = points.offered.take()?;
        points.pending = Some(next.id);
        self.any.store(false, Ordering::SeqCst);
        self.open.fetch_xor(1, Ordering::SeqCst);
        Some(next)
    }

    /// Primary: the standby has reached `point`, and all that was changed before it is on stable storage here.
    pub(crate) fn retire(&self, point: Id) -> Result<(), HistoryError> {
        let mut kept = lock(&self.kept);
        if lock(&self.points).pending != Some(point) {
            return Ok(());
        }
        let head = Head { role: Role::Active, point, previous: Id::NONE, ..kept.head };
        self.replace(&mut kept, head, Keep::Open, true)?;
        self.windows[1 - self.open.load(Ordering::SeqCst)].clear();
        lock(&self.points).pending = None;
        Ok(())
    }

    /// Standby: the image will change. `keep`: only where either side has changed it since the point.
    pub(crate) fn begin_copy(&self, keep: bool) -> Result<(), HistoryError> {
        let mut kept = lock(&self.kept);
        let Head { point, previous, .. } = kept.head;
        let (point, previous) = if keep { (point, previous) } else { (Id::NONE, Id::NONE) };
        let head = Head { role: Role::Copying, point, previous, ..kept.head };
        self.replace(&mut kept, head, Keep::All, false)
    }

    /// Standby: the image is on stable storage as it is at the point, if it still follows, which `follows` says.
    pub(crate) fn reach(&self, next: Next, follows: impl FnOnce() -> bool) -> Result<bool, HistoryError> {
        let mut kept = lock(&self.kept);
        if !follows() {
            return Ok(false);
        }
        let head = Head { role: Role::Following, point: next.id, previous: next.previous, ..kept.head };
        self.replace(&mut kept, head, Keep::Nothing, false)?;
        self.windows.iter().for_each(Blocks::clear);
        Ok(true)
    }

    /// Standby: waits until no [`History::reach`] is under way.
    pub(crate) fn settled(&self) {
        drop(lock(&self.kept));
    }

    /// The guest is this side's, on stable storage.
    pub(crate) fn take_over(&self) -> Result<(), HistoryError> {
        self.become_role(Role::Active)
    }

    /// The guest is the other side's.
    pub(crate) fn lose(&self) -> Result<(), HistoryError> {
        self.become_role(Role::Outdated)
    }

    fn become_role(&self, role: Role) -> Result<(), HistoryError> {
        let mut kept = lock(&self.kept);
        let head = Head { role, ..kept.head };
        self.replace(&mut kept, head, Keep::All, true)
    }

    /// The image will not be changed any more.
    pub(crate) fn close(&self, image: &Image) -> Result<(), HistoryError> {
        let mut kept = lock(&self.kept);
        if !kept.written {
            return Ok(());
        }
        let head = Head { stamp: image.stamp(), closed: true, ..kept.head };
        self.replace(&mut kept, head, Keep::All, false)
    }

    /// Writes `head` with what stays noted. `marks`: whoever changes the same regions again need not mark them.
    fn replace(&self, kept: &mut Kept, head: Head, keep: Keep, marks: bool) -> Result<(), HistoryError> {
        let id = Id::random().map_err(HistoryError::Random)?;
        let head = Head { id, ..head };
        let marking = self.marking.swap(head.point.is_some(), Ordering::SeqCst);
        let marks = marks && head.point.is_some();
        let stay = if marks { self.changing() } else { Blocks::of(self.size, REGION) };
        // From here on writers in other regions wait for this, and what they have noted before is seen below.
        let before = self.marked.retain(&stay);
        let regions = if marks { self.changing() } else { stay };
        let changed = Blocks::of(self.size, self.block);
        if head.point.is_some() && keep != Keep::Nothing {
            let open = self.open.load(Ordering::SeqCst);
            changed.or(&self.windows[open]);
            if keep == Keep::All {
                changed.or(&self.windows[1 - open]);
            }
        }
        match self.place.replace(&head, &changed, &regions) {
            Ok(current) => {
                *kept = Kept { head, current: Some(current), written: true };
                self.marked.or(&regions);
                Ok(())
            }
            Err(ReplaceError::Before(source)) => {
                for (at, bits) in before {
                    self.marked.or_word(at, bits);
                }
                self.marking.store(marking, Ordering::SeqCst);
                Err(self.unwritten(source))
            }
            Err(ReplaceError::After(source)) => {
                kept.current = None;
                self.marking.store(true, Ordering::SeqCst);
                Err(self.unwritten(source))
            }
        }
    }

    /// The regions of both windows.
    fn changing(&self) -> Blocks {
        let regions = Blocks::of(self.size, REGION);
        for range in self.windows.iter().flat_map(Blocks::ranges) {
            let (from, blocks) = (range.start * self.block, range.end - range.start);
            regions.insert(touched(from, blocks * self.block, REGION));
        }
        regions
    }

    fn unwritten(&self, source: io::Error) -> HistoryError {
        HistoryError::Write { path: self.place.path().to_owned(), source }
    }
}
#[cfg(test)]
impl History {
    /// Whether a point is on its way.
    pub(crate) fn is_pending(&self) -> bool {
        lock(&self.points).pending.is_some()
    }
}
