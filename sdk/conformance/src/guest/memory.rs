//! Guest memory, read and filled without a pointer of this crate's: the guest may write it at any time.

use aventine_api::{Guest, PAGE_SIZE, PageBitmap, Region};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// A guest's memory as it is now, or a copy of it.
pub struct Memory<'a>(Of<'a>);

enum Of<'a> {
    Live(&'a Mapped),
    Copy(&'a [u8]),
}

impl Memory<'_> {
    /// Reads from byte `at` of guest RAM on. Guest RAM is counted through all regions.
    ///
    /// # Panics
    /// When that reaches past the end.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        match self.0 {
            Of::Copy(bytes) => into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]),
            Of::Live(mapped) => {
                let (region, at) = mapped.find(at);
                mapped.this.read_exact_at(into, region.host.addr().get() as u64 + at).expect("guest memory");
            }
        }
    }
}

pub(super) fn copied(bytes: &[u8]) -> Memory<'_> {
    Memory(Of::Copy(bytes))
}

/// The regions of a guest. Valid until the guest is dropped.
pub(super) struct Mapped {
    regions: Vec<Region>,
    /// This process's memory. The kernel's copying, unlike a load of ours, may race with the guest, and a region that is
    /// not mapped is an error.
    this: File,
}

impl Mapped {
    pub(super) fn of(guest: &dyn Guest) -> Result<Mapped, String> {
        let this = OpenOptions::new().read(true).write(true).open("/proc/self/mem");
        Ok(Mapped { regions: guest.regions(), this: this.map_err(|e| format!("/proc/self/mem: {e}"))? })
    }

    pub(super) fn live(&self) -> Memory<'_> {
        Memory(Of::Live(self))
    }

    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(super) fn pages(&self) -> u64 {
        self.regions.iter().map(|r| r.pages).sum()
    }

    /// The region that holds byte `at`, and where.
    fn find(&self, at: u64) -> (&Region, u64) {
        let page = at / PAGE_SIZE as u64;
        let holds = |r: &&Region| (r.first_page..r.first_page + r.pages).contains(&page);
        let region = self.regions.iter().find(holds).expect("inside guest memory");
        (region, at - region.first_page * PAGE_SIZE as u64)
    }

    /// All of it.
    pub(super) fn read_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pages() as usize * PAGE_SIZE];
        for region in &self.regions {
            let (at, len) = (region.first_page as usize * PAGE_SIZE, region.pages as usize * PAGE_SIZE);
            self.live().read(at as u64, &mut bytes[at..at + len]);
        }
        bytes
    }

    /// Copies pages to their place in `image`.
    pub(super) fn copy(&self, pages: &PageBitmap, image: &mut [u8]) {
        for page in pages.runs().flat_map(|(first, count)| first..first + count) {
            let at = page as usize * PAGE_SIZE;
            self.live().read(at as u64, &mut image[at..at + PAGE_SIZE]);
        }
    }

    /// Fills it with `image`, as a standby's owner does: what is zero there stays untouched.
    pub(super) fn fill(&self, image: &[u8]) -> io::Result<()> {
        for (page, bytes) in image.chunks(PAGE_SIZE).enumerate() {
            if bytes.iter().any(|&b| b != 0) {
                let (region, at) = self.find((page * PAGE_SIZE) as u64);
                self.this.write_all_at(bytes, region.host.addr().get() as u64 + at)?;
            }
        }
        Ok(())
    }
}

/// The pages in which two images differ.
pub(super) fn differing(a: &[u8], b: &[u8]) -> PageBitmap {
    let mut pages = PageBitmap::new((a.len() / PAGE_SIZE) as u64);
    for (page, (a, b)) in a.chunks(PAGE_SIZE).zip(b.chunks(PAGE_SIZE)).enumerate() {
        if a != b {
            pages.set_range(page as u64, 1);
        }
    }
    pages
}

/// The first page of `due` that is not in `got`.
pub(super) fn missing(got: &PageBitmap, due: &PageBitmap) -> Option<u64> {
    due.runs().flat_map(|(first, count)| first..first + count).find(|page| !got.contains(*page))
}
