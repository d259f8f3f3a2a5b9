//! The lab: a small machine with Debian's kernel, under QEMU without KVM, in which a program of this host runs as root.
//!
//! ```text
//! initramfs = the demo guest's (busybox, modules) + /lab (init) + the program and its libraries
//! boot ─► /lab ─► program ─► its output and `lab: exit CODE` on the serial port ─► power off
//! ```

use crate::cpio::Archive;
use crate::guest::Guest;
use crate::run::{self, RunError};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a program could not be run in the lab.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LabError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("Cannot use {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("Cannot run QEMU")]
    Machine(#[source] io::Error),
    #[error("The program in the lab ended with {0}")]
    Exit(String),
    #[error("The machine ended before the program did")]
    Lost,
}

/// What is to be run.
pub(crate) struct Job {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// `NAME=VALUE`
    pub(crate) environment: Vec<String>,
}

/// Seconds that the whole may take, on a slow and busy machine.
const LIMIT: &str = "300";
const MEMORY: &str = "512M";
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check cryptomgr.notests rdinit=/lab";
const EXIT: &str = "lab: exit ";

/// Runs a job; its output goes where this program's goes.
pub(crate) fn run(guest: &Guest, job: &Job) -> Result<(), LabError> {
    let initrd = guest.initrd.with_file_name(format!("initrd-lab-{}", std::process::id()));
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| LabError::File { path, source }
    };
    let mut image = fs::read(&guest.initrd).map_err(at(&guest.initrd))?;
    image.extend(archive(job)?);
    fs::write(&initrd, image).map_err(at(&initrd))?;
    let ended = boot(&guest.kernel, &initrd);
    fs::remove_file(&initrd).map_err(at(&initrd))?;
    match ended?.as_deref() {
        Some("0") => Ok(()),
        Some(code) => Err(LabError::Exit(code.to_owned())),
        None => Err(LabError::Lost),
    }
}

/// Answers the program's exit code, if it came to its end.
fn boot(kernel: &Path, initrd: &Path) -> Result<Option<String>, LabError> {
    let mut machine = Command::new("timeout")
        .args([LIMIT, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", MEMORY])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", KERNEL_ARGUMENTS])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(LabError::Machine)?;
    let mut code = None;
    if let Some(output) = machine.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(LabError::Machine)?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            match line.strip_prefix(EXIT) {
                Some(number) => code = Some(number.to_owned()),
                None => println!("{line}"),
            }
        }
    }
    machine.wait().map_err(LabError::Machine)?;
    Ok(code)
}

/// The files of a job.
fn archive(job: &Job) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    archive.directory("tmp");
    archive.file("lab", script(job).as_bytes());
    let read =
        |path: &Path| fs::read(path).map_err(|source| LabError::File { path: path.to_owned(), source });
    archive.file("program", &read(&job.program)?);
    let libraries = parse_libraries(&run::text(Command::new("ldd").arg(&job.program))?);
    for library in libraries {
        archive.file(library.trim_start_matches('/'), &read(Path::new(&library))?);
    }
    Ok(archive.finish())
}

/// Reads `ldd`: the files that the loader takes. The first file system has the directories of Debian's.
fn parse_libraries(text: &str) -> BTreeSet<String> {
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

fn script(job: &Job) -> String {
    let environment = job.environment.iter().map(|pair| format!("export {}\n", quoted(pair)));
    let arguments = job.arguments.iter().map(|argument| format!(" {}", quoted(argument)));
    format!(
        "#!/bin/sh\nexport PATH=/bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         {}/program{} 2>&1\necho \"{EXIT}$?\"\npoweroff -f\n",
        environment.collect::<String>(),
        arguments.collect::<String>(),
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        let job = Job {
            program: "/bin/x".into(),
            arguments: vec!["it's".into(), "$HOME".into()],
            environment: vec!["A=b c".into()],
        };
        let script = script(&job);
        assert!(script.contains("export 'A=b c'\n"), "{script}");
        assert!(script.contains(r"/program 'it'\''s' '$HOME' 2>&1"), "{script}");
    }

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let text =
            "\tlinux-vdso.so.1 (0x7ff6)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7ff6)\n\t/lib64/ld.so.2 (0x7)\n";
        assert_eq!(
            parse_libraries(text).into_iter().collect::<Vec<_>>(),
            ["/lib/x/libc.so.6", "/lib64/ld.so.2"]
        );
    }
}
