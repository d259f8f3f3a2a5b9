//! What the machine must have installed, and getting it.

use aventine_lab::run::{self, RunError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program and the Debian package that has it.
pub(crate) type Need = (&'static str, &'static str);

/// What the demo needs, the making of its guest included.
pub(crate) const DEMO: &[Need] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ip", "iproute2"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// What the lab needs besides, and the programs that its hosts have from this machine.
pub(crate) const LAB: &[Need] = &[
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("tc", "iproute2"),
    ("ping", "iputils-ping"),
    ("script", "bsdutils"),
];

/// What looking at a guest's disk needs besides.
pub(crate) const SOAK: &[Need] =
    &[("mkfs.ext4", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("debugfs", "e2fsprogs"), ("sqlite3", "sqlite3")];

/// What the tests need besides.
pub(crate) const TESTS: &[Need] = &[
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("etcd", "etcd-server"),
    ("losetup", "mount"),
];

/// Packages that bring a service, and its unit: the tests start programs of their own.
const SERVICES: &[(&str, &str)] = &[("etcd-server", "etcd.service")];

/// Why the machine cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error(
        "Not installed: {0}. Install with:\n\n    sudo apt-get update && sudo apt-get install --no-install-recommends {0}\n"
    )]
    Missing(String),
    #[error("This is for Debian: apt-get is not there")]
    NotDebian,
    #[error("Cannot keep {unit} from being started; make {} a link to /dev/null", link.display())]
    Mask { unit: &'static str, link: PathBuf, source: io::Error },
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Installs what is missing: as root; for others, says what to install.
pub(crate) fn install(needs: &[Need]) -> Result<(), MachineError> {
    let mut missing = needs
        .iter()
        .filter(|(program, _)| run::find(program).is_none())
        .map(|(_, package)| *package)
        .collect::<Vec<_>>();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if run::find("apt-get").is_none() {
        return Err(MachineError::NotDebian);
    }
    if !is_root() {
        return Err(MachineError::Missing(missing.join(" ")));
    }
    eprintln!("Installing with apt: {}", missing.join(" "));
    run::output(Command::new("apt-get").args(["update", "-qq"]))?;
    for (_, unit) in SERVICES.iter().filter(|(package, _)| missing.contains(package)) {
        mask(unit)?;
    }
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-qq", "--yes", "--no-install-recommends"]).args(&missing);
    // Nothing is to be started, and nobody is there to be asked.
    run::output(apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))?;
    Ok(())
}

/// Keeps systemd, where it is, from starting a unit that is about to be installed, now and at each boot. `systemctl
/// unmask` undoes it.
fn mask(unit: &'static str) -> Result<(), MachineError> {
    let link = Path::new("/etc/systemd/system").join(unit);
    match symlink("/dev/null", &link) {
        Err(e) if ![ErrorKind::AlreadyExists, ErrorKind::NotFound].contains(&e.kind()) => {
            Err(MachineError::Mask { unit, link, source: e })
        }
        _ => Ok(()),
    }
}

/// Whether this user may install packages and make network namespaces.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|own| own.uid() == 0)
}
