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
use std::thread;

/// Longest frame that QEMU sends.
const LONGEST: usize = 68 << 10;
/// Frames in a queue.
const QUEUE: usize = 2048;

/// Joins the ends that the hosts' QEMUs do not hold.
pub(crate) fn join(ends: Vec<UnixStream>) -> io::Result<()> {
    let mut queues = Vec::new();
    for (number, end) in ends.iter().enumerate() {
        let (queue, frames) = sync_channel(QUEUE);
        let end = end.try_clone()?;
        start(format!("lab{number} in"), move || deliver(end, &frames))?;
        queues.push(queue);
    }
    for (own, end) in ends.into_iter().enumerate() {
        let mut others = queues.clone();
        others.remove(own);
        start(format!("lab{own} out"), move || forward(end, &others))?;
    }
    Ok(())
}

fn start(name: String, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    // It fails once the host has ended.
    thread::Builder::new().name(name).spawn(|| drop(work())).map(drop)
}

fn forward(mut from: UnixStream, others: &[SyncSender<Vec<u8>>]) -> io::Result<()> {
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
        for other in others {
            // Full, or a host that has ended.
            let _ = other.try_send(frame.clone());
        }
    }
}

fn deliver(mut to: UnixStream, frames: &Receiver<Vec<u8>>) -> io::Result<()> {
    frames.iter().try_for_each(|frame| to.write_all(&frame))
}
