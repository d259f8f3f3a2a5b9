//! What a lab host boots: Debian's stock kernel, and a first file system with busybox and the drivers for the host's files.
//!
//! All else, programs and libraries, is the file system of the machine that the lab runs on. Its kernel's other modules are
//! seen where the package was unpacked.

use crate::cpio::Archive;
use crate::kernel::{self, KernelError};
use crate::packages::{self, Deb, PackageError};
use crate::run::{self, RunError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Debian's packages are not there.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The kernel's package is not what was expected.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel's modules could not be indexed.
    #[error("Cannot index the modules of the lab's kernel (depmod is in the package kmod)")]
    Modules(#[source] RunError),
    /// A file cannot be read or made.
    #[error("Cannot use {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The package has changed.
    #[error("No {0} in the packages")]
    NoFile(String),
}

/// The finished files.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The first file system.
    pub initrd: PathBuf,
    /// The directory with the kernel's modules, as /lib/modules.
    pub modules: PathBuf,
    /// Where they all are.
    pub home: PathBuf,
}

const KERNEL: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";
/// What it takes to be told something and to see the host's files. Anything else is loaded from there.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay"];
const DIRECTORIES: [&str; 8] = ["bin", "dev", "host", "modules.d", "new", "proc", "sys", "upper"];
const COMMANDS: [&str; 9] =
    ["date", "hostname", "insmod", "ip", "mkdir", "mount", "sh", "sleep", "switch_root"];
const INIT: &str = include_str!("init.sh");

/// Makes the files, unless they are there already.
pub fn make() -> Result<Image, ImageError> {
    let cache = packages::cache()?;
    let debs = packages::resolve(&cache, KERNEL, &[], &[BUSYBOX])?;
    let key = packages::hash(&(&debs, INIT, MODULES, DIRECTORIES, COMMANDS));
    let home = boot_files(&cache, "lab", &key, &debs, initrd)?;
    Ok(Image {
        kernel: home.join("vmlinux"),
        initrd: home.join("initrd"),
        modules: home.join("kernel/lib/modules"),
        home,
    })
}

/// Makes what a machine boots from Debian's packages, unless it is there already; answers its directory, CACHE/KIND/KEY:
///
/// ```text
/// kernel/ root/     unpacked packages
/// vmlinux initrd    the kernel, and what `initrd` makes of the packages
/// ```
pub fn boot_files<E: From<ImageError>>(
    cache: &Path,
    kind: &str,
    key: &str,
    debs: &BTreeSet<Deb>,
    initrd: impl FnOnce(&Path) -> Result<Vec<u8>, E>,
) -> Result<PathBuf, E> {
    let home = cache.join(kind).join(key);
    if home.exists() {
        return Ok(home);
    }
    let _lock = packages::lock(cache, kind).map_err(ImageError::from)?;
    if home.exists() {
        return Ok(home);
    }
    eprintln!("Making {} from {} Debian packages", home.display(), debs.len());
    let made = cache.join(kind).join("new");
    let _ = fs::remove_dir_all(&made);
    packages::unpack(cache, debs, &made).map_err(ImageError::from)?;
    let kernel = kernel::unpack(&entry(&made.join("kernel/boot"), "vmlinuz-")?).map_err(ImageError::from)?;
    write(&made.join("vmlinux"), &kernel)?;
    write(&made.join("initrd"), &initrd(&made)?)?;
    fs::rename(&made, &home).map_err(|source| ImageError::File { path: home.clone(), source })?;
    Ok(home)
}

/// Not compressed: unpacking costs the host more than reading.
fn initrd(made: &Path) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::default();
    for path in DIRECTORIES {
        archive.directory(path);
    }
    archive.file("init", INIT.as_bytes());
    archive.file("bin/busybox", &read(&made.join("root/bin/busybox"))?);
    for command in COMMANDS {
        archive.link(&format!("bin/{command}"), "busybox");
    }
    let tree = entry(&made.join("kernel/lib/modules"), "")?;
    let version = tree.file_name().unwrap_or_default();
    let depmod = run::find("depmod").unwrap_or_else(|| "depmod".into());
    run::output(Command::new(depmod).arg("-b").arg(made.join("kernel")).arg(version))
        .map_err(ImageError::Modules)?;
    let mut order = String::new();
    for module in kernel::modules(&tree, &MODULES)? {
        let path = format!("modules.d/{}", module.file_name().unwrap_or_default().to_string_lossy());
        archive.file(&path, &read(&module)?);
        order.push_str(&format!("/{path}\n"));
    }
    archive.file("modules", order.as_bytes());
    Ok(archive.finish())
}

/// The entry of `dir` whose name begins with `prefix`.
/// The file in a directory whose name begins so.
pub fn entry(dir: &Path, prefix: &str) -> Result<PathBuf, ImageError> {
    let error = |source| ImageError::File { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(ImageError::NoFile(format!("{}/{prefix}", dir.display())))
}

/// A file's bytes.
pub fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|source| ImageError::File { path: path.to_owned(), source })
}

/// Makes a file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(|source| ImageError::File { path: path.to_owned(), source })
}
