//! The file that QEMU saves device states to: a memfd, lent over the control connection.
//!
//! QEMU writes each state from the position on that we set before, and never cuts the file; the position that it leaves
//! is the length. So the file's pages stay, and nothing is allocated in a pause but for a state longer than any before.

use crate::qmp::{Qmp, QmpError};
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

pub(crate) struct Saved {
    file: File,
    /// QEMU accepts one that can only be written, and writes at its position.
    lent: OwnedFd,
}

impl Saved {
    pub(crate) fn new() -> io::Result<Saved> {
        let file = rustix::fs::memfd_create("aventine-state", MemfdFlags::CLOEXEC)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let lent = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Saved { file: file.into(), lent })
    }

    /// Hands it to QEMU; answers its name there.
    pub(crate) fn lend(&self, qmp: &mut Qmp, deadline: Instant) -> Result<String, QmpError> {
        qmp.lend(self.lent.as_fd(), deadline)
    }

    /// The next state begins at the beginning.
    pub(crate) fn rewind(&self) -> io::Result<()> {
        Ok(rustix::fs::seek(&self.lent, SeekFrom::Start(0)).map(drop)?)
    }

    /// Replaces `state` with the one that was saved since.
    pub(crate) fn read(&self, state: &mut Vec<u8>) -> io::Result<()> {
        let length = rustix::fs::tell(&self.lent)?;
        state.resize(length as usize, 0);
        self.file.read_exact_at(state, 0)
    }
}
