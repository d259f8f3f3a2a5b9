//! What is taken out of Debian's kernel package: the kernel proper and a few modules.
//!
//! A bzImage is a small loader with the real kernel, an ELF file, compressed inside it. QEMU can start that ELF file
//! directly, which saves the guest seconds of unpacking under emulation.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file of the package cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// Which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No bzImage.
    #[error("{0} is not a kernel with a payload")]
    NoPayload(PathBuf),
    /// The program that unpacks it does not run.
    #[error("Cannot unpack the kernel with {program}")]
    Unpack {
        /// Which one.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Neither a file nor built in.
    #[error("The kernel has no module {0}")]
    NoModule(String),
}

/// Offsets in the header of a bzImage: sectors of the loader, where the payload is in what follows it, and its length.
const SECTORS: usize = 0x1f1;
const PAYLOAD: usize = 0x248;
const LENGTH: usize = 0x24c;

/// The ELF file inside a bzImage.
pub fn unpack(path: &Path) -> Result<Vec<u8>, KernelError> {
    let image = fs::read(path).map_err(|source| KernelError::Read { path: path.to_owned(), source })?;
    let payload = payload(&image).ok_or_else(|| KernelError::NoPayload(path.to_owned()))?;
    let (program, arguments): (_, &[&str]) = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"]),
        [0xfd, 0x37, ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        _ => return Err(KernelError::NoPayload(path.to_owned())),
    };
    let kernel =
        filter(program, arguments, payload).map_err(|source| KernelError::Unpack { program, source })?;
    match kernel.starts_with(b"\x7fELF") {
        true => Ok(kernel),
        false => Err(KernelError::NoPayload(path.to_owned())),
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let start = (usize::from(*image.get(SECTORS)?) + 1) * 512 + word(PAYLOAD)?;
    image.get(start..start + word(LENGTH)?)
}

/// Sends `input` through a program. What follows the packed stream makes some of them complain after the fact, so the
/// result is what counts.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut output = Vec::new();
    thread::scope(|scope| {
        // It may close its input before the end, for the same reason.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input)));
        stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut output))
    })?;
    child.wait()?;
    Ok(output)
}

/// The files of `wanted` modules and of those they need, in the order to load them in. Modules built into the kernel
/// are left out.
pub fn modules(tree: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>, KernelError> {
    let mut files = HashMap::new();
    list(tree, &mut files).map_err(|source| KernelError::Read { path: tree.to_owned(), source })?;
    let built_in = fs::read_to_string(tree.join("modules.builtin"))
        .map_err(|source| KernelError::Read { path: tree.join("modules.builtin"), source })?;
    let mut order = Vec::new();
    for name in wanted {
        load(name, &files, &built_in, &mut order)?;
    }
    Ok(order)
}

fn load(
    name: &str,
    files: &HashMap<String, PathBuf>,
    built_in: &str,
    order: &mut Vec<PathBuf>,
) -> Result<(), KernelError> {
    let Some(path) = files.get(name) else {
        let found =
            built_in.lines().filter_map(|line| module_name(Path::new(line))).any(|known| known == name);
        return if found { Ok(()) } else { Err(KernelError::NoModule(name.to_owned())) };
    };
    if !order.contains(path) {
        let module = fs::read(path).map_err(|source| KernelError::Read { path: path.clone(), source })?;
        for needed in depends(&module) {
            load(&needed, files, built_in, order)?;
        }
        order.push(path.clone());
    }
    Ok(())
}

/// What a module says it needs: `depends=a,b` and a zero byte, among its other strings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn list(dir: &Path, files: &mut HashMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The kernel treats dashes and underscores in module names alike.
fn module_name(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.strip_suffix(".ko").map(|name| name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_modules_come_first_and_once() {
        let tree = tempfile::tempdir().unwrap();
        let module = |name: &str, needs: &str| {
            let text = format!("\x7fELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(tree.path().join(format!("{name}.ko")), text).unwrap();
        };
        module("ring", "");
        module("virtio", "ring");
        module("virtio-net", "ring,virtio,core");
        fs::write(tree.path().join("modules.builtin"), "kernel/net/core.ko\n").unwrap();
        let order = modules(tree.path(), &["virtio_net", "virtio"]).unwrap();
        let names = order.iter().map(|path| module_name(path).unwrap()).collect::<Vec<_>>();
        assert_eq!(names, ["ring", "virtio", "virtio_net"]);
        assert!(
            matches!(modules(tree.path(), &["absent"]), Err(KernelError::NoModule(name)) if name == "absent")
        );
    }

    #[test]
    fn the_payload_lies_where_the_header_says() {
        let mut image = vec![0; 0x260];
        image[SECTORS] = 0;
        image[PAYLOAD] = 0x50;
        image[LENGTH] = 4;
        image[0x250..0x254].copy_from_slice(b"abcd");
        assert_eq!(payload(&image), Some(&b"abcd"[..]));
        image[LENGTH] = 0xff;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"short"), None);
    }
}
