//! The guest: Linux, busybox and Redis, from Debian's own packages, unpacked but not installed.
//!
//! ```text
//! target/guest/debs        downloaded packages
//! target/guest/KEY         made from them; KEY stands for their versions and for how it is made
//!   kernel/ root/            unpacked packages
//!   vmlinux initrd           what QEMU starts
//! ```

use crate::cpio::Archive;
use crate::kernel::{self, KernelError};
use crate::machine::{self, MachineError};
use crate::run::{self, RunError};
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("apt does not know the package {0}")]
    NoPackage(&'static str),
    #[error("Cannot make {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("No {file} in the packages")]
    NoFile { file: String },
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
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Makes the guest below `dir`, unless it is there already.
pub(crate) fn make(dir: &Path) -> Result<Guest, GuestError> {
    machine::update_lists(false)?;
    let debs = packages()?;
    let home = dir.join(key(&debs));
    let guest = Guest { kernel: home.join("vmlinux"), initrd: home.join("initrd") };
    if guest.initrd.exists() {
        return Ok(guest);
    }
    eprintln!("Making the guest from {} Debian packages", debs.len());
    let store = dir.join("debs");
    let made = dir.join("new");
    fs::create_dir_all(&store).map_err(|source| GuestError::File { path: store.clone(), source })?;
    let _ = fs::remove_dir_all(&made);
    download(&debs, &store)?;
    for deb in &debs {
        let to = made.join(if deb.package.starts_with("linux-image-") { "kernel" } else { "root" });
        fs::create_dir_all(&to).map_err(|source| GuestError::File { path: to.clone(), source })?;
        run::output(Command::new("dpkg-deb").arg("-x").arg(store.join(&deb.file)).arg(&to))?;
    }
    write(&made.join("vmlinux"), &kernel::unpack(&entry(&made.join("kernel/boot"), "vmlinuz-")?)?)?;
    write(&made.join("initrd"), &initrd(&made)?)?;
    let _ = fs::remove_dir_all(&home);
    fs::rename(&made, &home).map_err(|source| GuestError::File { path: home, source })?;
    Ok(guest)
}

/// `initrd` with one more program in it, as a file beside it.
pub(crate) fn with_program(guest: &Guest, program: &Path) -> Result<Guest, GuestError> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut archive = Archive::default();
    archive.file(&format!("bin/{name}"), &read(program)?);
    let mut bytes = read(&guest.initrd)?;
    bytes.extend(archive.finish());
    let initrd = guest.initrd.with_file_name(format!("initrd-{name}"));
    write(&initrd, &bytes)?;
    Ok(Guest { initrd, ..guest.clone() })
}

/// A package file, as apt names it: package, version and architecture.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Deb {
    package: String,
    file: String,
}

/// What to unpack: the current kernel, Redis with its libraries, and the rest.
fn packages() -> Result<BTreeSet<Deb>, GuestError> {
    let mut tree = Command::new("apt-cache");
    tree.args(["depends", "--recurse", "--important", "--no-pre-depends", KERNEL, REDIS]);
    let tree = parse_depends(&run::text(&mut tree)?);
    let kernel = tree.get(KERNEL).and_then(|needs| needs.first()).ok_or(GuestError::NoPackage(KERNEL))?;
    let mut wanted = vec![kernel.as_str(), REDIS];
    wanted.extend(OTHERS);
    let mut next = 1;
    while let Some(package) = wanted.get(next).copied() {
        let libraries = tree.get(package).into_iter().flatten().filter(|name| name.starts_with("lib"));
        for library in libraries {
            if !wanted.contains(&library.as_str()) {
                wanted.push(library);
            }
        }
        next += 1;
    }
    let uris = run::text(Command::new("apt-get").args(["download", "--print-uris"]).args(&wanted))?;
    Ok(parse_uris(&uris))
}

/// Reads `apt-cache depends --recurse`: each package's own dependencies, the first of alternatives only.
fn parse_depends(text: &str) -> HashMap<String, Vec<String>> {
    let mut tree = HashMap::<String, Vec<String>>::new();
    let (mut package, mut alternative) = ("", false);
    for line in text.lines() {
        let other = alternative;
        alternative = line.starts_with(" |");
        if !line.starts_with(' ') {
            package = line.trim();
            tree.entry(package.to_owned()).or_default();
        } else if let Some(needed) = line.trim_start_matches([' ', '|']).strip_prefix("Depends: ")
            && !other
        {
            tree.entry(package.to_owned()).or_default().push(needed.trim().to_owned());
        }
    }
    tree
}

/// Reads `apt-get download --print-uris`: `'URI' FILE SIZE HASH`.
fn parse_uris(text: &str) -> BTreeSet<Deb> {
    let files = text.lines().filter_map(|line| line.rsplit_once("' ")?.1.split(' ').next());
    files
        .filter_map(|file| Some(Deb { package: file.split_once('_')?.0.to_owned(), file: file.to_owned() }))
        .collect()
}

fn download(debs: &BTreeSet<Deb>, store: &Path) -> Result<(), GuestError> {
    let absent = debs.iter().filter(|deb| !store.join(&deb.file).exists()).map(|deb| &deb.package);
    let absent = absent.collect::<Vec<_>>();
    if absent.is_empty() {
        return Ok(());
    }
    let mut apt = Command::new("apt-get");
    // apt's own user may not write here.
    apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).args(absent).current_dir(store);
    run::output(&mut apt)?;
    Ok(())
}

fn key(debs: &BTreeSet<Deb>) -> String {
    let mut hasher = DefaultHasher::new();
    (debs, INIT, MODULES, DIRECTORIES, COMMANDS, POWER_BUTTON).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
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
    let loader = library(&root, LOADER)?;
    archive.file(&format!("lib64/{LOADER}"), &read(&loader)?);
    for name in libraries(&root, &loader, &redis)? {
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

/// The names of the shared libraries of a program, found by the packages' own loader.
fn libraries(root: &Path, loader: &Path, program: &Path) -> Result<Vec<String>, GuestError> {
    let path = LIBRARIES.map(|dir| root.join(dir).to_string_lossy().into_owned()).join(":");
    let list = run::text(Command::new(loader).args(["--library-path", &path, "--list"]).arg(program))?;
    let names = list.lines().filter_map(|line| line.trim().split_once(" => ")).map(|(name, _)| name);
    Ok(names.filter(|name| !name.starts_with('/')).map(str::to_owned).collect())
}

fn library(root: &Path, name: &str) -> Result<PathBuf, GuestError> {
    let found = LIBRARIES.iter().map(|dir| root.join(dir).join(name)).find(|path| path.exists());
    found.ok_or_else(|| GuestError::NoFile { file: name.to_owned() })
}

/// The entry of `dir` whose name begins with `prefix`.
fn entry(dir: &Path, prefix: &str) -> Result<PathBuf, GuestError> {
    let error = |source| GuestError::File { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(GuestError::NoFile { file: format!("{}/{prefix}", dir.display()) })
}

fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(path).map_err(|source| GuestError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    fs::write(path, bytes).map_err(|source| GuestError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_alternatives_is_taken() {
        let tree = parse_depends(
            "a\n  Depends: libx\n |Depends: liby\n  Depends: libz\n    liby2\nlibx\n  Depends: libc\n",
        );
        assert_eq!(tree["a"], ["libx", "liby"]);
        assert_eq!(tree["libx"], ["libc"]);
    }

    #[test]
    fn file_names_are_taken_from_apts_words() {
        let debs = parse_uris("'file:/r_5.deb' redis-tools_5%3a7.0_amd64.deb 991988 SHA256:fb47\nnoise\n");
        let debs = debs.into_iter().collect::<Vec<_>>();
        let expected = Deb { package: "redis-tools".into(), file: "redis-tools_5%3a7.0_amd64.deb".into() };
        assert_eq!(debs, [expected]);
    }
}
