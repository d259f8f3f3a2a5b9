//! The vhost-user-blk front-end of a disk plugin's block device, on a unix socket.
//!
//! ```text
//!  guest ─► virtqueue in guest RAM ─► worker ─► device
//!  QEMU  ═══ unix socket: memory, queues, start, stop ═══► handler
//! ```
//! Invariants:
//! - Nothing that a guest puts into its queues is trusted: addresses and lengths are checked before they are used, at most 1 MiB
//!   is taken for a request at a time, and nonsense stops that queue alone. A driver cannot write the configuration space, and the
//!   device never changes its size.
//! - A request is in the used ring after the device has carried it out, never before.
//! - A queue that QEMU has stopped is not touched any more once the stop is answered, so a paused guest's memory stays as it is.
//!   The stop waits for one request at most, whose size is limited; the rest of the queue stays in it, and is carried out by
//!   whoever goes on from that memory, here or at the standby.
//! - Every page of guest memory that is written here is written down, after the write (`memory`): no page table of QEMU's shows it.
//!   Whoever copies the guest's memory asks for them with [`VhostExport::take_written`].

mod backend;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod memory;
mod request;
mod turn;

use aventine_api::{BlockDevice, PageBitmap};
use aventine_export::{ExportError, SocketFile, listen_on};
use backend::Backend;
use memory::Tracked;
pub use memory::{FileId, Part, TakeError};
use rustix::net::{Shutdown, shutdown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Why an export could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VhostExportError {
    /// No socket, or no thread.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// virtio-blk counts in blocks.
    #[error(
        "The disk has {size} bytes; vhost-user-blk has whole blocks of {block} bytes only. Use frontend = \"nbd\", or an image \
         of another size"
    )]
    Size {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// No size of a block that guests know.
    #[error("A block of {0} bytes is none of vhost-user-blk: it has 512, 1024, 2048 or 4096")]
    Block(u32),
}

/// A running export. Dropping it closes the socket and the connection, removes the socket file and waits for the request that the
/// device is carrying out.
pub struct VhostExport {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
    file: SocketFile,
}

struct Shared {
    device: Arc<dyn BlockDevice>,
    block: u32,
    tracked: Arc<Tracked>,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    closed: bool,
    open: Option<ShutdownHandle>,
}

impl VhostExport {
    /// Serves `device` on the unix socket `socket`, which only this user can open, to one hypervisor at a time. It can connect
    /// once this returned. The socket file of a process that is gone is replaced.
    ///
    /// `block` is the guest's logical block, in bytes: every request is of whole ones. 512, 1024, 2048 or 4096; Linux knows no
    /// larger one than a page.
    pub fn start(
        socket: &Path,
        device: Arc<dyn BlockDevice>,
        block: u32,
    ) -> Result<VhostExport, VhostExportError> {
        let size = device.size();
        if !(512..=4096).contains(&block) || !block.is_power_of_two() {
            return Err(VhostExportError::Block(block));
        }
        if !size.is_multiple_of(block.into()) {
            return Err(VhostExportError::Size { size, block });
        }
        let (listener, file) = listen_on(socket)?;
        let ours = listener.try_clone().map_err(ExportError::Thread)?;
        let shared = Arc::new(Shared {
            device,
            block,
            tracked: Arc::default(),
            connection: Mutex::new(Connection::default()),
        });
        let accepting = thread::Builder::new().name("vhost-user".into());
        let accepting = accepting.spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept_all(Listener::from(ours))
        });
        let accepting = Some(accepting.map_err(ExportError::Thread)?);
        Ok(VhostExport { shared, listener, accepting, file })
    }

    /// The socket's path, as given.
    pub fn socket(&self) -> &Path {
        self.file.path()
    }

    /// Sets in `pages` the bit of every page of guest memory that was written here since the last call; `ram` says which parts of
    /// which files the guest's memory is. Atomic for each page: a write that races with the call shows in this answer or in the
    /// next. With the guest paused, nothing is written until it runs again. Does no I/O.
    ///
    /// After an error the bits of all pages of `ram` are set nevertheless.
    pub fn take_written(&self, ram: &[Part], pages: &mut PageBitmap) -> Result<(), TakeError> {
        self.shared.tracked.take(ram, pages)
    }
}

impl Drop for VhostExport {
    fn drop(&mut self) {
        {
            let mut connection = self.shared.connection();
            connection.closed = true;
            if let Some(open) = connection.open.take() {
                open.shutdown();
            }
        }
        if let Err(error) = shutdown(&self.listener, Shutdown::Both) {
            tracing::warn!(%error, "the export's socket could not be shut down");
        }
        if self.accepting.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(socket = %self.socket().display(), "the export's thread panicked");
        }
    }
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(&self, mut listener: Listener) {
        while !self.connection().closed {
            if let Err(error) = self.serve_one(&mut listener) {
                if self.connection().closed {
                    return;
                }
                tracing::warn!(%error, "the hypervisor's connection to a disk ended");
                // Out of descriptors or memory: trying again at once would only burn a processor.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Serves the next hypervisor to its end.
    fn serve_one(&self, listener: &mut Listener) -> Result<(), Error> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend::new(
            Arc::clone(&self.device),
            self.block,
            memory.clone(),
            Arc::clone(&self.tracked),
        ));
        let mut daemon = VhostUserDaemon::new("vhost-user disk".into(), backend, memory)?;
        daemon.start(listener)?;
        {
            let mut connection = self.connection();
            connection.open = daemon.shutdown_handle();
            if connection.closed {
                daemon.request_shutdown();
            }
        }
        let ended = daemon.wait();
        self.connection().open = None;
        match ended {
            // The hypervisor has closed it.
            Err(Error::HandleRequest(VhostUserError::Disconnected)) => Ok(()),
            ended => ended,
        }
    }
}
