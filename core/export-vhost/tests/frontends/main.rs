//! Both front-ends of a disk, each by a real client of it: what holds for the verbs of one holds for the other's.

#[path = "../../../export/src/tests/device.rs"]
mod device;
mod nbd;
mod verbs;
mod vhost;

use aventine_export::Export;
use aventine_export_vhost::VhostExport;
use device::Memory;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
enum Verb<'a> {
    Read { at: u64, len: usize },
    Write { at: u64, data: &'a [u8] },
    Flush,
    Discard { at: u64, len: u64 },
    Zeroes { at: u64, len: u64, may_unmap: bool },
}

/// The export said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

/// A client of a front-end.
trait Client {
    /// Asks, and answers what was read. It can go on asking after an error.
    fn ask(&mut self, verb: Verb<'_>) -> Result<Vec<u8>, Refused>;
}

/// Whether what a client writes must be on stable storage when it is answered, without a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    No,
    /// By NBD's FUA, or by a vhost-user driver that knows no flush.
    Yes,
}

/// A front-end.
struct Frontend {
    /// Positions and lengths are multiples of so many bytes.
    unit: usize,
    /// Most bytes of a read or a write.
    limit: usize,
    /// Most bytes that a single discard or write of zeroes is for.
    clear_limit: u64,
    serve: fn(&Path, Arc<Memory>) -> Box<dyn Served>,
}

impl Frontend {
    /// Bytes that every front-end can be asked for: whole sectors, and whole blocks.
    fn block(&self) -> usize {
        self.unit.max(512)
    }
}

/// A running export.
trait Served {
    fn connect(&self, durable: Durable) -> Box<dyn Client>;
}

struct Nbd(Export);

impl Served for Nbd {
    fn connect(&self, durable: Durable) -> Box<dyn Client> {
        Box::new(nbd::Nbd::connect(self.0.socket(), durable))
    }
}

struct Vhost(VhostExport);

impl Served for Vhost {
    fn connect(&self, durable: Durable) -> Box<dyn Client> {
        Box::new(vhost::Driver::connect(self.0.socket(), durable))
    }
}

const NBD: Frontend = Frontend {
    unit: 1,
    limit: 32 << 20,
    clear_limit: u32::MAX as u64,
    serve: |socket, device| Box::new(Nbd(Export::start(socket, "disk", device).unwrap())),
};

const VHOST: Frontend = Frontend {
    unit: 512,
    limit: 32 << 20,
    clear_limit: 64 << 20,
    serve: |socket, device| Box::new(Vhost(VhostExport::start(socket, device, 512).unwrap())),
};

const VHOST_4096: Frontend = Frontend {
    unit: 4096,
    serve: |socket, device| Box::new(Vhost(VhostExport::start(socket, device, 4096).unwrap())),
    ..VHOST
};

/// An export of a new device.
struct Running {
    device: Arc<Memory>,
    served: Box<dyn Served>,
    _dir: TempDir,
}

impl Running {
    fn new(frontend: &'static Frontend, size: usize) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let device = Memory::new(size);
        let served = (frontend.serve)(&dir.path().join("s"), device.clone());
        Running { device, served, _dir: dir }
    }
}

#[test]
fn nbd_keeps_every_rule_of_the_verbs() {
    verbs::keeps_every_rule(&NBD);
}

#[test]
fn vhost_user_keeps_every_rule_of_the_verbs() {
    verbs::keeps_every_rule(&VHOST);
}

#[test]
fn vhost_user_with_larger_blocks_keeps_every_rule_of_the_verbs() {
    verbs::keeps_every_rule(&VHOST_4096);
}
