//! The saved state that all lab hosts start from.
//!
//! ```text
//! CACHE/lab/KEY/state-HASH/ram       1 GiB, sparse: a host's memory when it was ready
//!                         /devices   the rest of it
//! ```
//! KEY stands for the image, HASH for QEMU and its options. A state is made once, under a lock, beside its name, and never
//! written again. Hosts map the memory privately: they share what none of them has changed.

use crate::image::{self, Image, ImageError};
use crate::machine::{self, Machine, MachineError};
use crate::packages::{self, PackageError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no saved state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Nothing to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The lock.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// It did not boot, or was not saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file cannot be read or made.
    #[error("Cannot use {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A saved state.
#[derive(Clone, Debug)]
pub struct State {
    home: PathBuf,
    /// The directory with the kernel's modules, as /lib/modules.
    pub(crate) modules: PathBuf,
}

impl State {
    /// The saved state; boots a host to make it if it is not there yet.
    pub fn make() -> Result<State, StateError> {
        let image = image::make()?;
        let hash = packages::hash(&machine::recipe()?);
        let home = image.home.join(format!("state-{hash}"));
        let state = State { home: home.clone(), modules: image.modules.clone() };
        if home.exists() {
            return Ok(state);
        }
        let _lock = packages::lock(&image.home, "state")?;
        if home.exists() {
            return Ok(state);
        }
        eprintln!("Booting a lab host, to save its state below {}", home.display());
        let new = image.home.join("state-new");
        let _ = fs::remove_dir_all(&new);
        save(&image, &new)?;
        fs::rename(&new, &home).map_err(|source| StateError::File { path: home, source })?;
        Ok(state)
    }

    /// A machine as it was when it was saved, with this disk.
    pub(crate) fn restore(&self, disk: File) -> Result<Machine, StateError> {
        let path = self.home.join("devices");
        let devices = File::open(&path).map_err(|source| StateError::File { path, source })?;
        Ok(Machine::restore(&self.home.join("ram"), &devices, disk)?)
    }
}

fn save(image: &Image, home: &Path) -> Result<(), StateError> {
    let path = home.join("devices");
    let devices = fs::create_dir_all(home).and_then(|()| File::create(&path));
    let devices = devices.map_err(|source| StateError::File { path, source })?;
    Ok(Machine::save(image, &home.join("ram"), &devices)?)
}
