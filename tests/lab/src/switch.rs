//! The Ethernet between the hosts: a switch in the test's own process, which floods.
//!
//! ```text
//! QEMU 0 ─ frames ─► thread 0 ─┬─ queue 1 ─► thread ─► QEMU 1        a frame: length (4 bytes, big-endian), then the frame
//!                              └─ queue 2 ─► thread ─► QEMU 2
//! ```
//! A host that does not take its frames loses them, as at a switch whose queue is full: whoever sends never waits for it. A
//! queue holds more than what soft-RoCE has under way, which knows no congestion. A thread ends with its host.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Longest frame that QEMU sends.
const LONGEST: usize = 68 << 10;
/// Frames in a queue.
const QUEUE: usize = 2048;

type Queue = SyncSender<Vec<u8>>;

/// Where the hosts are plugged in.
#[derive(Debug)]
pub(crate) struct Switch {
    queues: Vec<Mutex<Option<Queue>>>,
}

impl Switch {
    pub(crate) fn new(hosts: usize) -> Arc<Switch> {
        Arc::new(Switch { queues: (0..hosts).map(|_| Mutex::default()).collect() })
    }

    /// Plugs a host in, by the end that its QEMU does not hold, in place of the QEMU that it had before.
    pub(crate) fn join(self: &Arc<Switch>, own: usize, end: UnixStream) -> io::Result<()> {
        let (queue, frames) = sync_channel(QUEUE);
        *self.queue(own) = Some(queue);
        let to = end.try_clone()?;
        start(format!("lab{own} in"), move || deliver(to, &frames))?;
        let switch = Arc::clone(self);
        start(format!("lab{own} out"), move || switch.forward(end, own))
    }

    fn queue(&self, number: usize) -> MutexGuard<'_, Option<Queue>> {
        self.queues[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, mut from: UnixStream, own: usize) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let mut frame = length.to_vec();
            let length = u32::from_be_bytes(length) as usize;
            if length > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            frame.resize(4 + length, 0);
            from.read_exact(&mut frame[4..])?;
            for number in (0..self.queues.len()).filter(|number| *number != own) {
                if let Some(queue) = &*self.queue(number) {
                    // Full, or a host that has ended.
                    let _ = queue.try_send(frame.clone());
                }
            }
        }
    }
}

fn start(name: String, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    // It fails once the host has ended.
    thread::Builder::new().name(name).spawn(|| drop(work())).map(drop)
}

fn deliver(mut to: UnixStream, frames: &Receiver<Vec<u8>>) -> io::Result<()> {
    frames.iter().try_for_each(|frame| to.write_all(&frame))
}
