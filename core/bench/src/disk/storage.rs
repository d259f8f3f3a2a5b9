//! Where the disks are: in images that are made for the measurement, or where the user says.

use super::pair::Place;
use super::{BenchError, COPY, EXPORT, LEAST, Named, PRIMARY, QEMU_NBD, STANDBY};
use aventine_api::Kind;
use aventine_disk_common::image::{Image, OpenError};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An image's file, and the table of a disk that is it.
const IMAGE: &str = "disk.img";
const TABLE: &str = "image = 'disk.img'";
const PIECE: usize = 1 << 20;

/// Whether a plugin makes a disk of an image alone.
pub(super) fn takes_image(plugin: &str) -> bool {
    aventine_registry::find(Kind::Disk, plugin).is_some_and(|entry| (entry.validate)(TABLE).is_ok())
}

/// What is measured, and what it is compared with. All of it has been written to, but perhaps the plugin's.
pub(super) struct Disks {
    /// Of the plugin, on the primary and on the standby.
    pub(super) plugin: [Place; 2],
    /// Bytes of that which are still to be written before it is replicated.
    pub(super) unfilled: u64,
    pub(super) export: Option<Image>,
    /// From which to which writes are copied.
    pub(super) copy: Option<[Image; 2]>,
    /// An image for qemu-nbd.
    pub(super) qemu_nbd: Option<PathBuf>,
}

/// Makes all images, of `size` bytes; the standby's and the copy's in `standby`.
pub(super) fn make(dir: &Path, standby: &Path, size: u64, cached: bool) -> Result<Disks, BenchError> {
    let [here, export, copy, qemu_nbd] = [PRIMARY, EXPORT, COPY, QEMU_NBD].map(|name| dir.join(name));
    let [there, copies] = [STANDBY, "copies"].map(|name| standby.join(name));
    for dir in [&here, &export, &copy, &qemu_nbd, &copies] {
        make_image(dir, size).map_err(BenchError::Directory)?;
    }
    fs::create_dir_all(&there).map_err(BenchError::Directory)?;
    let table = if cached { format!("{TABLE}\ndirect = false") } else { TABLE.to_owned() };
    let place = |dir: PathBuf| Place { table: table.clone(), config_dir: dir.clone(), state_dir: dir };
    let open = |dir: &Path| open(&dir.join(IMAGE), cached);
    Ok(Disks {
        plugin: [place(here), place(there)],
        unfilled: 0,
        export: Some(open(&export)?),
        copy: Some([open(&copy)?, open(&copies)?]),
        qemu_nbd: Some(qemu_nbd.join(IMAGE)),
    })
}

/// Opens what the user names, and writes the first `size` bytes of each; `dir` is for what the plugin keeps beside.
pub(super) fn take(
    plugin: &str,
    dir: &Path,
    named: &Named,
    size: u64,
    cached: bool,
) -> Result<Disks, BenchError> {
    let place = |name: &'static str, table: &str| {
        let entry = super::find(plugin)?;
        let bad = |e| BenchError::Table(plugin.to_owned(), name, e);
        (entry.validate)(table).map_err(bad)?;
        let state_dir = dir.join(name);
        fs::create_dir(&state_dir).map_err(BenchError::Directory)?;
        Ok::<_, BenchError>(Place { table: table.to_owned(), config_dir: ".".into(), state_dir })
    };
    let places = [place(PRIMARY, &named.primary)?, place(STANDBY, &named.standby)?];
    let open = |path: &PathBuf| open(path, cached);
    // None is written to before all are found to be free.
    let export = named.export.as_ref().map(open).transpose()?;
    let copy = match &named.copy {
        Some([from, to]) => Some([open(from)?, open(to)?]),
        None => None,
    };
    let images = || export.iter().chain(copy.iter().flatten());
    if let Some(small) = images().map(Image::size).find(|size| *size < LEAST) {
        return Err(BenchError::Small(small));
    }
    for image in images() {
        let write = |at, data: &[u8]| image.write(at, data, false);
        fill(image.size().min(size), write).and_then(|()| image.sync()).map_err(BenchError::Fill)?;
    }
    Ok(Disks { plugin: places, unfilled: size, export, copy, qemu_nbd: None })
}

fn open(path: &Path, cached: bool) -> Result<Image, OpenError> {
    let image = Image::open(path)?;
    Ok(if cached { image } else { image.direct() })
}

/// Gives the first `size` bytes contents. What was never written is read at another speed.
pub(super) fn fill<E>(size: u64, mut write: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let block: Vec<u8> = (0..PIECE).map(|i| (i % 253) as u8).collect();
    (0..size).step_by(PIECE).try_for_each(|at| write(at, &block[..(size - at).min(PIECE as u64) as usize]))
}

/// An image without holes.
fn make_image(dir: &Path, size: u64) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut file = File::create(dir.join(IMAGE))?;
    fill(size, |_, data| file.write_all(data))?;
    // Its way to the disk is not what is measured.
    file.sync_all()
}
