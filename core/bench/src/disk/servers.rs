//! What a replicated disk is compared with: the same image without replication.

use super::client::Client;
use super::{BenchError, Frontend};
use aventine_api::{BlockDevice, PluginError};
use aventine_disk_common::image::Image;
use aventine_export::Export;
use aventine_export_vhost::VhostExport;
use std::any::Any;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// An image behind our own front-end.
pub(super) struct Raw(pub(super) Image);

impl BlockDevice for Raw {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        Ok(self.0.read(offset, buf)?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        Ok(self.0.write(offset, data, fua)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        self.0.zero(offset, len, may_unmap)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.write_zeroes(offset, len, true, false)
    }

    fn flush(&self) -> Result<(), PluginError> {
        Ok(self.0.sync()?)
    }
}

/// Serves `device` by our own front-end, as `name` in `dir`, until the first is dropped; and connects to it, for requests in
/// the first `size` bytes.
pub(super) fn serve(
    frontend: Frontend,
    dir: &Path,
    name: &'static str,
    device: Arc<dyn BlockDevice>,
    size: u64,
) -> Result<(Box<dyn Any>, Client), BenchError> {
    let socket = dir.join(format!("{name}-{}.sock", frontend.name()));
    let front: Box<dyn Any> = match frontend {
        Frontend::Nbd => Box::new(Export::start(&socket, name, device)?),
        Frontend::VhostUser => Box::new(VhostExport::start(&socket, device, 512)?),
    };
    let client = Client::connect(frontend, &socket, size).map_err(|e| BenchError::Client(name, e))?;
    Ok((front, client))
}

/// A running qemu-nbd.
pub(super) struct QemuNbd(Child);

impl QemuNbd {
    /// Serves an image to one client, past the page cache if `direct`. `None`: it is not installed.
    pub(super) fn start(
        dir: &Path,
        image: &Path,
        size: u64,
        direct: bool,
    ) -> Result<Option<(QemuNbd, Client)>, BenchError> {
        let mut command = Command::new("qemu-nbd");
        let socket = dir.join("qemu.sock");
        let cache = if direct { "--cache=none" } else { "--cache=writeback" };
        command.args(["--format=raw", cache, "--socket"]).arg(&socket);
        command.arg(image).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            spawned => QemuNbd(spawned.map_err(BenchError::QemuNbd)?),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(Frontend::Nbd, &socket, size) {
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
