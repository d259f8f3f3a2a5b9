//! The listening socket: private from its first moment, and never put over one that is in use.

use crate::ExportError;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket's file, removed when this is dropped, unless another file has taken its place.
pub struct SocketFile {
    pub(crate) path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file could not be removed");
        }
    }
}

/// Listens on `path` with mode 0600, in place of the socket of a process that is gone.
pub fn listen_on(path: &Path) -> Result<(UnixListener, SocketFile), ExportError> {
    let failed = |source: io::Error| ExportError::Socket { path: path.to_owned(), source };
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    clear_stale(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed(e.into()))?;
    // Linux gives the file the mode that the socket has when it is bound: there is no moment with a wider one.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    bind(&socket, &address).map_err(|e| failed(e.into()))?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let file = SocketFile { path: path.to_owned(), device: meta.dev(), inode: meta.ino() };
    listen(&socket, 16).map_err(|e| failed(e.into()))?;
    Ok((UnixListener::from(socket), file))
}

fn clear_stale(path: &Path) -> Result<(), ExportError> {
    let failed = |source| ExportError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ExportError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ExportError::InUse { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}
