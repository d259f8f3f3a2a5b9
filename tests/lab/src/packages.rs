//! Debian's packages, fetched with apt and unpacked, but not installed.
//!
//! ```text
//! CACHE                   $XDG_CACHE_HOME/aventine, or ~/.cache/aventine
//!   debs/                   downloaded packages
//!   resolved/HASH           the packages that one list of wishes comes to, by what apt knew when it was asked
//!   guest/KEY, lab/KEY      what is made from them; KEY stands for all that it is made from
//!   NAME/KEY/root           packages that were asked for one by one, unpacked
//!   *.lock                  held by whoever makes something
//! ```

use crate::run::{self, RunError};
use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs, io};

/// Why packages are not there.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Not Debian, nor anything made from it.
    #[error("Packages come with apt, as on Debian: apt-cache is not there")]
    NotDebian,
    /// `apt-get update` takes root.
    #[error("apt has no package lists. Get them with:\n\n    sudo apt-get update\n")]
    NoLists(#[source] RunError),
    /// Not in apt's lists.
    #[error("apt does not know the package {0}")]
    NoPackage(String),
    /// A step failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: RunError,
    },
    /// A file or directory cannot be used.
    #[error("Cannot use {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A package file, as apt names it: package, version and architecture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deb {
    /// The package's name.
    pub package: String,
    /// The name of its file.
    pub file: String,
}

impl Deb {
    fn of(file: &str) -> Option<Deb> {
        Some(Deb { package: file.split_once('_')?.0.to_owned(), file: file.to_owned() })
    }

    /// As apt takes it: this version and no other.
    fn wish(&self) -> String {
        let version = self.file.split('_').nth(1).unwrap_or_default();
        format!("{}={}", self.package, version.replace("%3a", ":"))
    }
}

/// Where downloads and what is made from them are kept, for all of a user's copies of the repository.
pub fn cache() -> Result<PathBuf, PackageError> {
    let given = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::home_dir().filter(|path| path.is_absolute()).map(|home| home.join(".cache"));
    let cache = given.or_else(home).unwrap_or_else(|| PathBuf::from("/var/cache")).join("aventine");
    make_directory(&cache)?;
    Ok(cache)
}

/// Waits until nobody else makes what `name` stands for; that ends when the answer is dropped.
pub fn lock(cache: &Path, name: &str) -> Result<File, PackageError> {
    let path = cache.join(format!("{name}.lock"));
    let locked = File::create(&path).and_then(|file| {
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.map_err(|source| PackageError::File { path, source })
}

/// The kernel that the package `kernel` stands for now, the packages in `programs` with the libraries they need, and
/// `others` without. Gets apt's lists where there are none, and asks apt anew, which takes seconds, when they changed.
pub fn resolve(
    cache: &Path,
    kernel: &str,
    programs: &[&str],
    others: &[&str],
) -> Result<BTreeSet<Deb>, PackageError> {
    let known = cache.join("resolved");
    make_directory(&known)?;
    let known = known.join(hash(&(lists_changed(), kernel, programs, others)));
    if let Ok(files) = fs::read_to_string(&known) {
        return Ok(files.lines().filter_map(Deb::of).collect());
    }
    update_lists(kernel)?;
    let known = known.with_file_name(hash(&(lists_changed(), kernel, programs, others)));
    let debs = ask(kernel, programs, others)?;
    // Under a name of its own until it is whole: others may read it.
    let new = known.with_extension(std::process::id().to_string());
    let files = debs.iter().map(|deb| format!("{}\n", deb.file)).collect::<String>();
    let written = fs::write(&new, files).and_then(|()| fs::rename(&new, &known));
    written.map_err(|source| PackageError::File { path: known, source })?;
    Ok(debs)
}

/// The packages of `wishes` (`NAME` or `NAME=VERSION`) and no others, unpacked: answers where. They are kept under `name`, and
/// fetched once.
pub fn unpacked(name: &str, wishes: &[&str]) -> Result<PathBuf, PackageError> {
    let cache = cache()?;
    let _lock = lock(&cache, name)?;
    let made = cache.join(name).join(hash(&wishes));
    if !made.exists() {
        let first = wishes.first().map_or("", |wish| wish.split('=').next().unwrap_or(wish));
        update_lists(first)?;
        let mut uris = Command::new("apt-get");
        uris.args(["download", "--print-uris"]).args(wishes);
        let uris = run::text(&mut uris);
        let uris = uris.map_err(|source| PackageError::Step { step: "Looking for packages", source })?;
        // Under a name of its own until it is whole.
        let new = made.with_extension("new");
        unpack(&cache, &parse_uris(&uris), &new)?;
        fs::rename(&new, &made).map_err(|source| PackageError::File { path: made.clone(), source })?;
    }
    Ok(made.join("root"))
}

/// When apt's lists were last changed.
fn lists_changed() -> Option<SystemTime> {
    fs::metadata("/var/lib/apt/lists").and_then(|lists| lists.modified()).ok()
}

/// A name for something that is made from `parts`.
pub fn hash(parts: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn ask(kernel: &str, programs: &[&str], others: &[&str]) -> Result<BTreeSet<Deb>, PackageError> {
    let step = |step| move |source| PackageError::Step { step, source };
    let mut tree = Command::new("apt-cache");
    tree.args(["depends", "--recurse", "--important", "--no-pre-depends", kernel]).args(programs);
    let tree = run::text(&mut tree).map_err(step("Looking for packages"))?;
    let tree = parse_depends(&tree);
    let needs = tree.get(kernel).and_then(|needs| needs.first());
    let needs = needs.ok_or_else(|| PackageError::NoPackage(kernel.to_owned()))?;
    let mut wanted = vec![needs.as_str()];
    wanted.extend(programs);
    wanted.extend(others);
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
    let mut uris = Command::new("apt-get");
    uris.args(["download", "--print-uris"]).args(&wanted);
    Ok(parse_uris(&run::text(&mut uris).map_err(step("Looking for packages"))?))
}

/// Gets apt's package lists if they do not have `package`.
fn update_lists(package: &str) -> Result<(), PackageError> {
    if run::find("apt-cache").is_none() {
        return Err(PackageError::NotDebian);
    }
    let known = Command::new("apt-cache").args(["show", package]).output();
    if known.is_ok_and(|output| output.status.success() && !output.stdout.is_empty()) {
        return Ok(());
    }
    run::output(Command::new("apt-get").args(["update", "-qq"])).map(drop).map_err(PackageError::NoLists)
}

/// Downloads what is not in the cache yet and unpacks it: kernels to `made`/kernel, all else to `made`/root.
pub fn unpack(cache: &Path, debs: &BTreeSet<Deb>, made: &Path) -> Result<(), PackageError> {
    let store = cache.join("debs");
    make_directory(&store)?;
    download(debs, &store)?;
    for deb in debs {
        let to = made.join(if deb.package.starts_with("linux-image-") { "kernel" } else { "root" });
        make_directory(&to)?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(store.join(&deb.file)).arg(&to);
        run::output(&mut unpack).map_err(|source| PackageError::Step { step: "Unpacking", source })?;
    }
    Ok(())
}

fn download(debs: &BTreeSet<Deb>, store: &Path) -> Result<(), PackageError> {
    let _lock = lock(store, "debs")?;
    let absent = debs.iter().filter(|deb| !store.join(&deb.file).exists()).map(Deb::wish);
    let absent = absent.collect::<Vec<_>>();
    if absent.is_empty() {
        return Ok(());
    }
    let mut apt = Command::new("apt-get");
    // apt's own user may not write here.
    apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).args(absent).current_dir(store);
    run::output(&mut apt).map(drop).map_err(|source| PackageError::Step { step: "Downloading", source })
}

fn make_directory(path: &Path) -> Result<(), PackageError> {
    fs::create_dir_all(path).map_err(|source| PackageError::File { path: path.to_owned(), source })
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
    files.filter_map(Deb::of).collect()
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
    fn a_package_is_asked_for_by_the_version_in_its_files_name() {
        let wish = |file: &str| Deb::of(file).unwrap().wish();
        assert_eq!(wish("redis-tools_5%3a7.0.15-1~deb12u10_amd64.deb"), "redis-tools=5:7.0.15-1~deb12u10");
        assert_eq!(wish("libllvm19_1%3a19.1.7-3~deb12u1_amd64.deb"), "libllvm19=1:19.1.7-3~deb12u1");
    }

    #[test]
    fn file_names_are_taken_from_apts_words() {
        let debs = parse_uris("'file:/r_5.deb' redis-tools_5%3a7.0_amd64.deb 991988 SHA256:fb47\nnoise\n");
        let debs = debs.into_iter().collect::<Vec<_>>();
        let expected = Deb { package: "redis-tools".into(), file: "redis-tools_5%3a7.0_amd64.deb".into() };
        assert_eq!(debs, [expected]);
    }
}
