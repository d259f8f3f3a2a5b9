//! The guest's part: what it asks for, and by which front-end.

use super::Frontend;
use super::{nbd, vhost};
use std::io;
use std::path::Path;
use std::time::Duration;
use vm_memory::GuestMemoryError;

/// How long a server may take for one reply.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Why requests were not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection.
    #[error("The connection to the disk's server failed")]
    Io(#[from] io::Error),
    /// Not NBD.
    #[error("The server does not speak NBD: it sent {0:#x}")]
    Magic(u64),
    /// A smaller disk.
    #[error("The server's disk has {0} bytes; {1} are needed")]
    Size(u64, u64),
    /// A failed request.
    #[error("The server failed a request with error {0}")]
    Failed(u32),
    /// A message of vhost-user.
    #[error("The server did not take a message of vhost-user")]
    Vhost(#[from] ::vhost::Error),
    /// Another kind of device.
    #[error("The server's device has the features {0:#x}; {1:#x} are needed")]
    Features(u64, u64),
    /// A device that takes less at a time.
    #[error("The server's device takes segments of {0} bytes; {1} are needed")]
    Segment(u32, u32),
    /// The memory of the queue.
    #[error("The memory that the server works on cannot be used")]
    Memory(#[from] GuestMemoryError),
    /// No such memory.
    #[error("The memory that the server works on cannot be mapped")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// An answer to nothing.
    #[error("The server answered request {0}, which is not under way")]
    Nonsense(u32),
}

/// Which requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) write: bool,
    /// At random places, otherwise one after the other.
    pub(super) random: bool,
    /// Bytes of a request.
    pub(super) block: usize,
    /// Requests under way.
    pub(super) depth: u64,
}

/// Where requests go: the same places in each run.
pub(super) struct Places {
    size: u64,
    random: u64,
    next: u64,
}

impl Places {
    /// On a disk of `size` bytes.
    pub(super) fn of(size: u64) -> Places {
        Places { size, random: 1, next: 0 }
    }

    /// The next place in bytes, and what makes the next write another one.
    pub(super) fn next(&mut self, load: Load) -> (u64, u64) {
        let (block, blocks) = (load.block as u64, self.size / load.block as u64);
        // Xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.next += 1;
        let at = if load.random { self.random } else { self.next };
        (at % blocks * block, self.random)
    }
}

/// A connection by either front-end.
pub(super) enum Client {
    Nbd(nbd::Client),
    Vhost(Box<vhost::Client>),
}

impl Client {
    pub(super) fn connect(frontend: Frontend, socket: &Path, size: u64) -> Result<Client, ClientError> {
        Ok(match frontend {
            Frontend::Nbd => Client::Nbd(nbd::Client::connect(socket, size)?),
            Frontend::VhostUser => Client::Vhost(Box::new(vhost::Client::connect(socket, size)?)),
        })
    }

    /// Sends requests for `time`, or at least `least` of them; answers how many, all of them answered.
    pub(super) fn run(&mut self, load: Load, time: Duration, least: u64) -> Result<u64, ClientError> {
        match self {
            Client::Nbd(client) => client.run(load, time, least),
            Client::Vhost(client) => client.run(load, time, least),
        }
    }
}
