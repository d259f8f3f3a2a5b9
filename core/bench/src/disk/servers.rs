//! What a replicated disk is compared with: the same image without replication.

use super::BenchError;
use super::client::Client;
use aventine_api::{BlockDevice, ErrorCode, PluginError};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// An image behind our own front-end.
pub(super) struct Raw {
    pub(super) file: File,
    pub(super) size: u64,
}

fn io(error: io::Error) -> PluginError {
    PluginError::new(ErrorCode::Io, error)
}

impl BlockDevice for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        self.file.read_exact_at(buf, offset).map_err(io)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        self.file.write_all_at(data, offset).map_err(io)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, fua: bool) -> Result<(), PluginError> {
        self.write(offset, &vec![0; len as usize], fua)
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.write_zeroes(offset, len, true, false)
    }

    fn flush(&self) -> Result<(), PluginError> {
        self.file.sync_data().map_err(io)
    }
}

/// A running qemu-nbd.
pub(super) struct QemuNbd(Child);

impl QemuNbd {
    /// Serves an image to one client. `None`: it is not installed.
    pub(super) fn start(dir: &Path, size: u64) -> Result<Option<(QemuNbd, Client)>, BenchError> {
        let mut command = Command::new("qemu-nbd");
        let socket = dir.join("qemu.sock");
        command.args(["--format=raw", "--cache=writeback", "--socket"]).arg(&socket);
        command.arg(dir.join("qemu/disk.img")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            spawned => QemuNbd(spawned.map_err(BenchError::QemuNbd)?),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&socket, size) {
                Ok(client) => return Ok(Some((server, client))),
                Err(error) if Instant::now() > deadline => return Err(BenchError::Client("qemu-nbd", error)),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
            if let Some(status) = server.0.try_wait().map_err(BenchError::QemuNbd)? {
                return Err(BenchError::QemuNbd(io::Error::other(format!("it ended: {status}"))));
            }
        }
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
