//! Files that are not plugins of this program: each is refused with its own words, before its code runs where that can be.

use aventine_abi::{ABI, Descriptor};
use aventine_registry::{FileError, LoadError, Trust};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A directory that only this user can write.
fn dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    dir
}

/// Compiles C to a shared object, whose initialiser ends this program if it ever runs.
fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (code, file) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&code, source).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&file).arg(&code).args(flags);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    file
}

const TRAP: &str = "__attribute__((constructor)) static void trap(void) { __builtin_trap(); }\n";

/// A descriptor in C, as docs/abi.md describes it.
fn descriptor(abi: u32) -> String {
    format!(
        "const struct {{ char magic[16]; unsigned size, abi; char build[232]; }} {} = \
         {{ \"aventine plugin\", {}, {abi}, \"crafted 0.1.0\" }};\n",
        Descriptor::SYMBOL,
        Descriptor::SIZE
    )
}

fn refused(file: &Path) -> (LoadError, String) {
    let error = aventine_registry::load(file, Trust::OwnersOnly).err().unwrap();
    let told = error.chain();
    assert!(told.lines().count() == 1, "{told}");
    (error, told)
}

#[test]
fn what_is_no_plugin_is_refused_before_it_runs() {
    let dir = dir();
    let absent = dir.path().join("absent.so");
    let (error, told) = refused(&absent);
    assert!(matches!(error, LoadError::File(FileError::Missing(_))), "{told}");
    assert_eq!(told, format!("there is no file {}", absent.display()));

    let (error, told) = refused(dir.path());
    assert!(matches!(error, LoadError::File(FileError::NotAFile(_))), "{told}");

    for (name, bytes) in [("empty.so", &b""[..]), ("text.so", b"net"), ("cut.so", b"\x7fELF\x02\x01\x01")] {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        let (error, told) = refused(&file);
        assert!(matches!(error, LoadError::File(FileError::NotElf(_))), "{told}");
    }

    let library = compile(dir.path(), "library.so", TRAP, &[]);
    let (error, told) = refused(&library);
    assert!(matches!(error, LoadError::File(FileError::NotPlugin(_))), "{told}");
    assert!(told.contains("library.so is a shared object but not a plugin"), "{told}");

    let short = compile(dir.path(), "short.so", &format!("{TRAP}const char {}[4];", Descriptor::SYMBOL), &[]);
    assert!(matches!(refused(&short).0, LoadError::File(FileError::NotPlugin(_))));
}

#[test]
fn another_processor_and_another_interface_are_named() {
    let dir = dir();
    let file = compile(dir.path(), "plugin.so", &format!("{TRAP}{}", descriptor(ABI)), &[]);
    assert_eq!(aventine_registry::about(&file, Trust::OwnersOnly).unwrap().build, "crafted 0.1.0");

    // The machine's number stands at byte 18 of an ELF header; 21 is 64-bit PowerPC.
    let mut bytes = fs::read(&file).unwrap();
    bytes[18..20].copy_from_slice(&21u16.to_ne_bytes());
    let foreign = dir.path().join("foreign.so");
    fs::write(&foreign, bytes).unwrap();
    let (error, told) = refused(&foreign);
    assert!(matches!(error, LoadError::File(FileError::Architecture { .. })), "{told}");
    assert!(told.contains("is built for powerpc64, this program for"), "{told}");

    let later = compile(dir.path(), "later.so", &format!("{TRAP}{}", descriptor(ABI + 1)), &[]);
    let (error, told) = refused(&later);
    assert!(matches!(error, LoadError::File(FileError::Abi { .. })), "{told}");
    // One that still offers the interface of this program is told apart from it only by what the loader finds.
    let source = format!("{}char AVENTINE_PLUGIN_V1[512];", descriptor(ABI + 1));
    let (error, told_of_both) = refused(&compile(dir.path(), "both.so", &source, &[]));
    assert!(matches!(error, LoadError::Interface { .. }), "{told_of_both}");
    assert!(
        told.contains("later.so (crafted 0.1.0) offers plugin interface 2; this program knows interface 1")
    );
}

#[test]
fn what_the_system_cannot_load_is_told_in_its_words() {
    let dir = dir();
    let needed = compile(dir.path(), "libneeded.so", "int needed(void) { return 1; }", &[]);
    let source = format!("{}int needed(void); int calls(void) {{ return needed(); }}", descriptor(ABI));
    let link = format!("-L{}", dir.path().display());
    let plugin = compile(dir.path(), "plugin.so", &source, &[&link, "-lneeded"]);
    fs::remove_file(needed).unwrap();
    let (error, told) = refused(&plugin);
    assert!(matches!(&error, LoadError::Library { library, .. } if library == "libneeded.so"), "{told}");
    assert!(told.ends_with("needs the library libneeded.so, which is not installed here"), "{told}");

    let source = format!("{}int nowhere(void); int calls(void) {{ return nowhere(); }}", descriptor(ABI));
    let (error, told) = refused(&compile(dir.path(), "unresolved.so", &source, &[]));
    assert!(matches!(error, LoadError::Open { .. }) && told.contains("nowhere"), "{told}");

    let (error, told) = refused(&compile(dir.path(), "bare.so", &descriptor(ABI), &[]));
    assert!(matches!(error, LoadError::NoHeader(_)), "{told}");

    let source = format!("{}char AVENTINE_PLUGIN_V1[512];", descriptor(ABI));
    let (error, told) = refused(&compile(dir.path(), "foreign.so", &source, &[]));
    assert!(matches!(error, LoadError::Interface { .. }), "{told}");
    assert!(told.contains("another abi_stable"), "{told}");
}

#[test]
fn what_others_can_write_is_refused_unless_it_is_wanted() {
    let dir = dir();
    let file = compile(dir.path(), "plugin.so", &format!("{TRAP}{}", descriptor(ABI)), &[]);
    let link = dir.path().join("link.so");
    symlink(&file, &link).unwrap();
    for (mode, refused_for) in [(0o755, None), (0o775, Some("0775")), (0o646, Some("0646"))] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        for path in [&file, &link] {
            let told = aventine_registry::about(path, Trust::OwnersOnly).err().map(|e| e.chain());
            match refused_for {
                None => assert_eq!(told, None),
                Some(mode) => assert!(told.unwrap().contains(&format!("its mode is {mode}"))),
            }
            assert!(aventine_registry::about(path, Trust::Anybody).is_ok());
        }
    }
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    for (mode, refused) in [(0o777, true), (0o1777, false), (0o700, false)] {
        fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        let about = aventine_registry::about(&file, Trust::OwnersOnly);
        assert_eq!(about.is_err(), refused, "{mode:o}");
    }
}
