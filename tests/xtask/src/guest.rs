//! The guest: Linux, busybox and Redis, from Debian's own packages, unpacked but not installed.
//!
//! ```text
//! CACHE/guest/KEY          KEY stands for the packages' versions and for how it is made; see `aventine_lab::packages`
//!   kernel/ root/            unpacked packages
//!   vmlinux initrd           what QEMU starts
//! CACHE/PACKAGE/KEY/tool   a program that tests put on a guest's disk
//!   bin/PACKAGE lib/         it and its libraries
//! ```

use aventine_lab::cpio::Archive;
use aventine_lab::image::{self, ImageError, entry, read, write};
use aventine_lab::kernel::{self, KernelError};
use aventine_lab::packages::{self, PackageError};
use aventine_lab::run::{self, RunError};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The finished files.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// The kernel, an ELF file.
    pub(crate) kernel: PathBuf,
    /// The initramfs of the demo.
    pub(crate) initrd: PathBuf,
}

const KERNEL: &str = "linux-image-cloud-amd64";
const REDIS: &str = "redis-tools";
/// What is fetched besides the kernel, Redis and its libraries. `redis-server` is but a name for a file of REDIS.
const OTHERS: [&str; 2] = ["busybox-static", "redis-server"];
const MODULES: [&str; 6] = ["virtio_pci", "virtio_net", "virtio_blk", "button", "evdev", "pvpanic_pci"];
const DIRECTORIES: [&str; 11] = [
    "bin",
    "dev",
    "etc",
    "etc/acpi",
    "etc/acpi/PWRF",
    "lib",
    "lib/x86_64-linux-gnu",
    "lib64",
    "proc",
    "sys",
    "modules.d",
];
const COMMANDS: [&str; 9] = ["acpid", "cat", "insmod", "ip", "kill", "mount", "pidof", "poweroff", "sh"];
/// What busybox's acpid runs when the power button is pressed.
const POWER_BUTTON: (&str, &str) = ("etc/acpi/PWRF/00000080", "#!/bin/sh\n/bin/poweroff -f\n");
const INIT: &str = include_str!("init.sh");
const LOADER: &str = "ld-linux-x86-64.so.2";
/// The one library whose package is not called so.
const ZLIB: &str = "zlib1g";
/// Where packages have libraries.
const LIBRARIES: [&str; 3] =
    ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// Makes the guest, unless it is there already.
pub(crate) fn make() -> Result<Guest, GuestError> {
    let cache = packages::cache()?;
    let debs = packages::resolve(&cache, KERNEL, &[REDIS], &OTHERS)?;
    let key = packages::hash(&(&debs, INIT, MODULES, DIRECTORIES, COMMANDS, POWER_BUTTON));
    let home = image::boot_files(&cache, "guest", &key, &debs, initrd)?;
    Ok(Guest { kernel: home.join("vmlinux"), initrd: home.join("initrd") })
}

/// `initrd` with one more program in it, as a file beside that program.
pub(crate) fn with_program(guest: &Guest, program: &Path) -> Result<Guest, GuestError> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut archive = Archive::default();
    archive.file(&format!("bin/{name}"), &read(program)?);
    let mut bytes = read(&guest.initrd)?;
    bytes.extend(archive.finish());
    let initrd = program.with_extension("initrd");
    write(&initrd, &bytes)?;
    Ok(Guest { initrd, ..guest.clone() })
}

/// The initramfs. Not compressed: unpacking costs the guest more than reading.
fn initrd(made: &Path) -> Result<Vec<u8>, GuestError> {
    let root = made.join("root");
    let mut archive = Archive::default();
    for path in DIRECTORIES {
        archive.directory(path);
    }
    archive.file("init", INIT.as_bytes());
    archive.file(POWER_BUTTON.0, POWER_BUTTON.1.as_bytes());
    archive.file("bin/busybox", &read(&root.join("bin/busybox"))?);
    for command in COMMANDS {
        archive.link(&format!("bin/{command}"), "busybox");
    }
    let redis = root.join("usr/bin/redis-server");
    archive.file("bin/redis-server", &read(&redis)?);
    archive.file(&format!("lib64/{LOADER}"), &read(&library(&root, LOADER)?)?);
    for name in libraries(&root, &redis)? {
        archive.file(&format!("{}/{name}", LIBRARIES[0]), &read(&library(&root, &name)?)?);
    }
    let tree = entry(&made.join("kernel/lib/modules"), "")?;
    let mut order = String::new();
    for module in kernel::modules(&tree, &MODULES)? {
        let path = format!("modules.d/{}", module.file_name().unwrap_or_default().to_string_lossy());
        archive.file(&path, &read(&module)?);
        order.push_str(&format!("/{path}\n"));
    }
    archive.file("modules", order.as_bytes());
    Ok(archive.finish())
}

/// A directory with one of Debian's programs and the libraries that it needs, in `bin` and `lib`, unless it is there already.
/// It is the program of its package's name.
pub(crate) fn tool(package: &str) -> Result<PathBuf, GuestError> {
    let cache = packages::cache()?;
    let mut debs = packages::resolve(&cache, KERNEL, &[package], &[ZLIB])?;
    debs.retain(|deb| !deb.package.starts_with("linux-image-"));
    let home = cache.join(package).join(packages::hash(&(&debs, LIBRARIES)));
    let _lock = packages::lock(&cache, package)?;
    if !home.exists() {
        // Under a name of its own until it is whole.
        let made = home.with_extension("new");
        let _ = fs::remove_dir_all(&made);
        packages::unpack(&cache, &debs, &made)?;
        let (root, tool) = (made.join("root"), made.join("tool"));
        let file = |path: &Path, source| ImageError::File { path: path.to_owned(), source };
        let copy = |from: &Path, to: &Path| fs::copy(from, to).map(drop).map_err(|e| file(from, e));
        for dir in ["bin", "lib"].map(|name| tool.join(name)) {
            fs::create_dir_all(&dir).map_err(|e| file(&dir, e))?;
        }
        let program = root.join("usr/bin").join(package);
        copy(&program, &tool.join("bin").join(package))?;
        for name in libraries(&root, &program)? {
            copy(&library(&root, &name)?, &tool.join("lib").join(&name))?;
        }
        fs::remove_dir_all(&root).map_err(|e| file(&root, e))?;
        fs::rename(&made, &home).map_err(|e| file(&home, e))?;
    }
    Ok(home.join("tool"))
}

/// The names of the shared libraries of a program, found by the packages' own loader.
fn libraries(root: &Path, program: &Path) -> Result<Vec<String>, GuestError> {
    let path = LIBRARIES.map(|dir| root.join(dir).to_string_lossy().into_owned()).join(":");
    let loader = library(root, LOADER)?;
    let list = run::text(Command::new(loader).args(["--library-path", &path, "--list"]).arg(program))?;
    let names = list.lines().filter_map(|line| line.trim().split_once(" => ")).map(|(name, _)| name);
    Ok(names.filter(|name| !name.starts_with('/')).map(str::to_owned).collect())
}

fn library(root: &Path, name: &str) -> Result<PathBuf, GuestError> {
    let found = LIBRARIES.iter().map(|dir| root.join(dir).join(name)).find(|path| path.exists());
    Ok(found.ok_or_else(|| ImageError::NoFile(name.to_owned()))?)
}
