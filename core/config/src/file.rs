//! From a path to text.

use crate::ConfigErrors;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Most bytes of a configuration. Far above any real one; keeps a wrong path (a disk image, a device) harmless.
const LIMIT: u64 = 1 << 20;

pub(crate) fn read(path: &Path) -> Result<String, ConfigErrors> {
    let failed = |source| ConfigErrors::Read { file: path.to_owned(), source };
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => ConfigErrors::Missing(path.to_owned()),
        _ => failed(e),
    })?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(ConfigErrors::Directory(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT {
        return Err(ConfigErrors::TooLarge { file: path.to_owned(), limit: LIMIT });
    }
    String::from_utf8(bytes).map_err(|e| not_utf8(path, e.as_bytes(), e.utf8_error().valid_up_to()))
}

fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> ConfigErrors {
    let before = String::from_utf8_lossy(&bytes[..at]);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    ConfigErrors::NotUtf8 {
        file: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        byte: bytes[at],
    }
}

/// The directory that a configuration's relative paths are meant from.
pub(crate) fn directory(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}
