//! Guest memory, as the guest plugin maps it into this process.

use aventine_api::{ErrorCode, Guest, PAGE_SIZE, PageSink, PluginError, Region};

/// A piece of guest memory that the plugin does not have.
#[derive(Debug, thiserror::Error)]
#[error("Guest pages {first} to {last} lie outside the guest's {pages} pages", last = first + count - 1)]
struct OutsideMemory {
    first: u64,
    count: u64,
    pages: u64,
}

/// All regions of a guest.
pub(crate) struct GuestMemory {
    regions: Vec<Region>,
    pages: u64,
}

// SAFETY: the regions are plain shared memory, valid from any thread for as long as the guest plugin lives.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    /// The memory of a started guest.
    ///
    /// # Safety
    /// The answer must not be used after `guest` was dropped.
    pub(crate) unsafe fn of(guest: &dyn Guest) -> GuestMemory {
        // SAFETY: a guest's regions stay valid until it is dropped.
        unsafe { GuestMemory::from_regions(guest.regions()) }
    }

    /// # Safety
    /// The regions must stay valid while the answer is in use.
    pub(crate) unsafe fn from_regions(regions: Vec<Region>) -> GuestMemory {
        let pages = regions.iter().map(|r| r.pages).sum();
        GuestMemory { regions, pages }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Copies pages from `first` on into `out`, a whole number of pages. A guest that runs may change them
    /// meanwhile: then its dirty bit is set and they are copied again.
    pub(crate) fn read(&self, mut first: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let region = self.region(first).expect("the bitmap covers exactly the guest's pages");
            let inside = first - region.first_page;
            let bytes = out.len().min((region.pages - inside) as usize * PAGE_SIZE);
            let (now, later) = out.split_at_mut(bytes);
            // SAFETY: `inside` plus `bytes` lie inside the region, which is readable while the guest plugin lives,
            // and `now` is memory of this process alone.
            unsafe {
                let from = region.host.as_ptr().add(inside as usize * PAGE_SIZE);
                std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), bytes);
            }
            first += (bytes / PAGE_SIZE) as u64;
            out = later;
        }
    }

    /// Copies the contents of `old`, a guest of the same layout that no longer runs, into this memory, which is all zero:
    /// pages that are zero stay untouched.
    pub(crate) fn take(&mut self, old: &GuestMemory) -> Result<(), PluginError> {
        const STEP: u64 = 512;
        if old.pages != self.pages {
            let outside = OutsideMemory { first: 0, count: old.pages, pages: self.pages };
            return Err(PluginError::new(ErrorCode::Internal, outside));
        }
        let mut bytes = vec![0; STEP as usize * PAGE_SIZE];
        let mut first = 0;
        while first < self.pages {
            // A step never crosses a region, because `pages` answers one slice.
            let left = self.region(first).map_or(0, |r| r.first_page + r.pages - first);
            let count = STEP.min(left);
            let now = &mut bytes[..count as usize * PAGE_SIZE];
            old.read(first, now);
            for (n, page) in
                now.chunks_exact(PAGE_SIZE).enumerate().filter(|(_, p)| p.iter().any(|&b| b != 0))
            {
                self.pages(first + n as u64, 1)?.copy_from_slice(page);
            }
            first += count;
        }
        Ok(())
    }

    fn region(&self, page: u64) -> Option<&Region> {
        self.regions.iter().find(|r| (r.first_page..r.first_page + r.pages).contains(&page))
    }
}

impl PageSink for GuestMemory {
    fn pages(&mut self, first: u64, count: u64) -> Result<&mut [u8], PluginError> {
        let inside = |r: &&Region| {
            first >= r.first_page && first.checked_add(count).is_some_and(|end| end <= r.first_page + r.pages)
        };
        let region = self.regions.iter().find(inside).ok_or_else(|| {
            PluginError::new(ErrorCode::Corrupt, OutsideMemory { first, count, pages: self.pages })
        })?;
        let offset = (first - region.first_page) as usize * PAGE_SIZE;
        // SAFETY: the range lies inside the region, which is writable on the standby while the guest plugin lives;
        // the guest there does not run, and `&mut self` makes this the only slice.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(region.host.as_ptr().add(offset), count as usize * PAGE_SIZE)
        })
    }
}
