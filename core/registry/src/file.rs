//! What can be said of a shared object before it is loaded.

use aventine_abi::{ABI, Descriptor, HEADER_V1};
use object::{Architecture, Object, ObjectSection, ObjectSymbol};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether a file that somebody else could change is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only what root or this user alone can write.
    OwnersOnly,
    /// Whatever the configuration names.
    Anybody,
}

/// What a plugin's file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The newest plugin interface that it offers.
    pub abi: u32,
    /// The package that it was built from, and its version.
    pub build: String,
}

/// Why a file is not even tried.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Nothing is there.
    #[error("there is no file {}", .0.display())]
    Missing(PathBuf),
    /// It could not be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, a socket.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else could have written what would run here.
    #[error(
        "{} can be changed by others than root and this user ({how}); make it and its directory writable by the owner \
         alone, or accept it with `unsafe_writable = true` under [plugins]",
        file.display()
    )]
    Writable {
        /// The file, or the directory that it is in.
        file: PathBuf,
        /// What lets them.
        how: String,
    },
    /// Some other kind of file.
    #[error("{} is not a shared object", .0.display())]
    NotElf(PathBuf),
    /// For another processor.
    #[error("{} is built for {theirs}, this program for {}", file.display(), std::env::consts::ARCH)]
    Architecture {
        /// The file.
        file: PathBuf,
        /// The processor it is built for.
        theirs: String,
    },
    /// A library like any other.
    #[error(
        "{} is a shared object but not a plugin: it has no {}, which `export_plugin!` writes",
        .0.display(),
        Descriptor::SYMBOL
    )]
    NotPlugin(PathBuf),
    /// A plugin for another generation of this program.
    #[error(
        "{} ({build}) offers plugin interface {abi}; this program knows interface {ABI}: build one of them anew",
        file.display()
    )]
    Abi {
        /// The file.
        file: PathBuf,
        /// What it was built from.
        build: String,
        /// Its newest interface.
        abi: u32,
    },
}

/// The file itself, whatever links lead to it.
pub(crate) fn real(file: &Path) -> Result<PathBuf, FileError> {
    fs::canonicalize(file).map_err(|source| unreadable(file, source))
}

fn unreadable(file: &Path, source: io::Error) -> FileError {
    match source.kind() {
        ErrorKind::NotFound => FileError::Missing(file.to_owned()),
        _ => FileError::Read { file: file.to_owned(), source },
    }
}

/// Looks at the file at `file`, a path without links.
pub(crate) fn read(file: &Path, trust: Trust) -> Result<About, FileError> {
    let metadata = fs::metadata(file).map_err(|e| unreadable(file, e))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile(file.to_owned()));
    }
    if trust == Trust::OwnersOnly {
        unchangeable(file, &metadata)?;
        if let Some(dir) = file.parent() {
            unchangeable(dir, &fs::metadata(dir).map_err(|e| unreadable(dir, e))?)?;
        }
    }
    let bytes = fs::read(file).map_err(|e| unreadable(file, e))?;
    describe(file, &bytes)
}

/// Only root and this user can change it. What is in a directory with the sticky bit is its owner's alone.
fn unchangeable(file: &Path, metadata: &Metadata) -> Result<(), FileError> {
    let writable = |how: String| Err(FileError::Writable { file: file.to_owned(), how });
    let (mode, owner) = (metadata.mode(), metadata.uid());
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return writable(format!("user {owner} owns it"));
    }
    let sticky = metadata.is_dir() && mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return writable(format!("its mode is {:04o}", mode & 0o7777));
    }
    Ok(())
}

/// Finds the descriptor.
fn describe(file: &Path, bytes: &[u8]) -> Result<About, FileError> {
    let not_elf = |_| FileError::NotElf(file.to_owned());
    let object = object::File::parse(bytes).map_err(not_elf)?;
    if ours().is_some_and(|ours| ours != object.architecture()) {
        let theirs = format!("{:?}", object.architecture()).to_lowercase();
        return Err(FileError::Architecture { file: file.to_owned(), theirs });
    }
    let descriptor = descriptor(&object).ok_or_else(|| FileError::NotPlugin(file.to_owned()))?;
    let (abi, build) = (descriptor.abi(), descriptor.build());
    // A newer plugin offers the older interfaces, too; what it does not offer cannot be used.
    if abi != ABI && definition(&object, HEADER_V1).is_none() {
        return Err(FileError::Abi { file: file.to_owned(), build, abi });
    }
    Ok(About { abi, build })
}

fn descriptor(object: &object::File<'_>) -> Option<Descriptor> {
    let symbol = definition(object, Descriptor::SYMBOL)?;
    let section = object.section_by_index(symbol.section_index()?).ok()?;
    let bytes = section.data_range(symbol.address(), Descriptor::SIZE as u64).ok()??;
    Descriptor::read(bytes)
}

fn definition<'a>(object: &'a object::File<'_>, name: &str) -> Option<object::Symbol<'a, 'a>> {
    object.dynamic_symbols().find(|s| s.is_definition() && s.name() == Ok(name))
}

/// The architecture of this program, where it has a name of its own.
fn ours() -> Option<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Architecture::X86_64),
        "aarch64" => Some(Architecture::Aarch64),
        "riscv64" => Some(Architecture::Riscv64),
        _ => None,
    }
}
