//! The Ethernet between the hosts: a hub in the test's own process.
//!
//! ```text
//! QEMU 0 ─ frames ─► thread 0 ─► every other QEMU        a frame: length (4 bytes, big-endian), then the frame
//! ```
//! A host that does not take its frames loses them, as at a switch whose queue is full: whoever sends never waits for it.
//! A thread ends with its host.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Longest frame that QEMU sends.
const LONGEST: usize = 68 << 10;

/// Where the hosts are plugged in.
#[derive(Debug)]
pub(crate) struct Hub {
    ends: Vec<Mutex<Option<UnixStream>>>,
}

impl Hub {
    pub(crate) fn new(hosts: usize) -> Arc<Hub> {
        Arc::new(Hub { ends: (0..hosts).map(|_| Mutex::default()).collect() })
    }

    /// Plugs a host in, by the end that its QEMU does not hold, in place of the QEMU that it had before.
    pub(crate) fn join(self: &Arc<Hub>, own: usize, end: UnixStream) -> io::Result<()> {
        *self.end(own) = Some(end.try_clone()?);
        let hub = Arc::clone(self);
        thread::Builder::new().name(format!("lab{own} eth0")).spawn(move || {
            // The host has ended.
            let _ = hub.forward(end, own);
        })?;
        Ok(())
    }

    fn end(&self, number: usize) -> MutexGuard<'_, Option<UnixStream>> {
        self.ends[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, mut from: UnixStream, own: usize) -> io::Result<()> {
        let mut frame = vec![0; 4 + LONGEST];
        loop {
            from.read_exact(&mut frame[..4])?;
            let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
            let whole = frame.get_mut(..4 + length).ok_or(io::ErrorKind::InvalidData)?;
            from.read_exact(&mut whole[4..])?;
            for number in (0..self.ends.len()).filter(|number| *number != own) {
                if let Some(end) = self.end(number).as_mut().filter(|end| has_room(end)) {
                    // A host that has ended takes no frames.
                    let _ = end.write_all(whole);
                }
            }
        }
    }
}

/// A socket that polls as writable has three quarters of its buffer free: more than a frame takes.
fn has_room(end: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(end, PollFlags::OUT)];
    poll(&mut polled, Some(&now)).is_ok_and(|_| polled[0].revents().contains(PollFlags::OUT))
}
