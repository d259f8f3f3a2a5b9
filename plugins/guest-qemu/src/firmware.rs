//! The firmware of a standby's machine.
//!
//! A QEMU that waits for a migration leaves the machine's read-only memory empty and forgets what belongs there, because
//! the migration would bring it. Ours brings the device state alone. So the firmware is put there again, from the file
//! that the primary's QEMU has it from: program, version and command are the same on both sides (`signature`). Without it
//! a guest that was taken over would run on, and stop at its next reboot.

use crate::options::Options;
use crate::qmp::{Qmp, QmpError};
use rustix::process::Pid;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Why the firmware could not be put into a standby's machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirmwareError {
    #[error("Could not ask QEMU where its firmware belongs")]
    Qmp(#[from] QmpError),
    #[error("QEMU's answer to {what} has another form than expected: {answer:?}")]
    Form { what: &'static str, answer: String },
    #[error("Could not ask {program} where its firmware files are")]
    Directories { program: String, source: io::Error },
    #[error(
        "The firmware {name} is in none of QEMU's directories ({directories}). Name it by its whole path, with -bios"
    )]
    Missing { name: String, directories: String },
    #[error("Could not read the firmware {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("The firmware {} has {got} bytes, and QEMU has room for {size}", path.display())]
    Size { path: PathBuf, got: usize, size: usize },
    #[error("Could not write the firmware into QEMU's memory")]
    Write(#[source] io::Error),
}

/// Read-only memory of the machine and the file that it holds.
#[derive(Debug, PartialEq, Eq)]
struct Rom {
    address: u64,
    size: usize,
    name: String,
}

/// Fills the read-only memory of QEMU `pid`, which waits for a migration.
pub(crate) fn restore(
    pid: Pid,
    qmp: &mut Qmp,
    options: &Options,
    dir: &Path,
    deadline: Instant,
) -> Result<(), FirmwareError> {
    let roms = parse_roms(&qmp.human("info roms", deadline)?)?;
    if roms.is_empty() {
        return Ok(());
    }
    let directories = directories(&options.command, dir)?;
    let memory = format!("/proc/{}/mem", pid.as_raw_nonzero());
    let memory = OpenOptions::new().write(true).open(memory).map_err(FirmwareError::Write)?;
    for rom in &roms {
        let bytes = read(rom, dir, &directories)?;
        let at = parse_place(qmp.human(&format!("gpa2hva {:#x}", rom.address), deadline)?)?;
        memory.write_all_at(&bytes, at).map_err(FirmwareError::Write)?;
    }
    Ok(())
}

/// Lines such as `addr=00000000fffc0000 size=0x040000 mem=rom name="bios-256k.bin"`. Those of another form are filled by
/// QEMU itself.
fn parse_roms(list: &str) -> Result<Vec<Rom>, FirmwareError> {
    let lines = list.lines().filter(|line| line.contains(" mem=rom "));
    let rom = |line: &str| {
        let field = |name: &str| {
            let mut words = line.split_ascii_whitespace();
            words.find_map(|word| word.strip_prefix(name))
        };
        let address = u64::from_str_radix(field("addr=")?, 16).ok()?;
        let size = usize::from_str_radix(field("size=0x")?, 16).ok()?;
        let name = line.split_once("name=\"")?.1.strip_suffix('"')?.to_owned();
        Some(Rom { address, size, name })
    };
    lines
        .map(|line| {
            rom(line.trim()).ok_or_else(|| FirmwareError::Form { what: "info roms", answer: line.to_owned() })
        })
        .collect()
}

/// `Host virtual address for 0xfffc0000 (pc.bios) is 0x7ff238600000`
fn parse_place(answer: String) -> Result<u64, FirmwareError> {
    let place = answer.trim().rsplit_once(" is 0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
    place.ok_or(FirmwareError::Form { what: "gpa2hva", answer })
}

/// Where the QEMU of this command looks for its files.
fn directories(command: &[String], dir: &Path) -> Result<Vec<PathBuf>, FirmwareError> {
    let program = &command[0];
    let own = command.windows(2).filter(|pair| pair[0] == "-L").flatten();
    let output =
        Command::new(program).args(own).args(["-L", "help"]).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.map_err(|source| FirmwareError::Directories { program: program.clone(), source })?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(|line| dir.join(line.trim())).collect())
}

fn read(rom: &Rom, dir: &Path, directories: &[PathBuf]) -> Result<Vec<u8>, FirmwareError> {
    // As QEMU looks: the name as it is, then its directories.
    let mut places = [dir].into_iter().chain(directories.iter().map(PathBuf::as_path));
    let path = places.find_map(|place| Some(place.join(&rom.name)).filter(|path| path.is_file()));
    let path = path.ok_or_else(|| {
        let shown = directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>();
        FirmwareError::Missing { name: rom.name.clone(), directories: shown.join(", ") }
    })?;
    let bytes = std::fs::read(&path).map_err(|source| FirmwareError::Read { path: path.clone(), source })?;
    if bytes.len() != rom.size {
        return Err(FirmwareError::Size { path, got: bytes.len(), size: rom.size });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_read_only_memory_at_an_address_is_ours_to_fill() {
        let list = "fw=genroms/kvmvapic.bin size=0x002400 name=\"kvmvapic.bin\"\r\n\
            addr=00000000fffc0000 size=0x040000 mem=rom name=\"bios-256k.bin\"\r\n\
            addr=0000000000100000 size=0x000010 mem=ram name=\"other\"\r\n\
            /rom@etc/acpi/rsdp size=0x001000 name=\"etc/acpi/rsdp\"\r\n";
        let bios = Rom { address: 0xfffc_0000, size: 0x40000, name: "bios-256k.bin".into() };
        assert_eq!(parse_roms(list).unwrap(), [bios]);
        assert!(parse_roms("addr=zz size=0x10 mem=rom name=\"x\"").is_err());
        assert!(parse_roms("addr=10 size=0x10 mem=rom name=x").is_err());
        let place = "Host virtual address for 0xfffc0000 (pc.bios) is 0x7ff238600000\r\n";
        assert_eq!(parse_place(place.into()).unwrap(), 0x7ff2_3860_0000);
        assert!(parse_place("No memory is mapped at address 0x0\r\n".into()).is_err());
    }

    #[test]
    fn firmware_that_is_not_there_or_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let rom = Rom { address: 0, size: 4, name: "bios".into() };
        let error = read(&rom, dir.path(), &["/nowhere".into()]).unwrap_err();
        assert!(error.to_string().contains("bios is in none of QEMU's directories (/nowhere)"), "{error}");
        std::fs::write(dir.path().join("bios"), [1; 5]).unwrap();
        assert!(matches!(read(&rom, dir.path(), &[]), Err(FirmwareError::Size { got: 5, size: 4, .. })));
        std::fs::write(dir.path().join("bios"), [1; 4]).unwrap();
        assert_eq!(read(&rom, dir.path(), &[]).unwrap(), [1; 4]);
    }
}
