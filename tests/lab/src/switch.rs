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
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Longest frame that QEMU sends.
const LONGEST: usize = 68 << 10;

/// Joins the ends that the hosts' QEMUs do not hold.
pub(crate) fn join(ends: Vec<UnixStream>) -> io::Result<()> {
    let copies = ends.iter().map(|end| end.try_clone().map(Mutex::new)).collect::<io::Result<Vec<_>>>()?;
    let copies = Arc::new(copies);
    for (own, end) in ends.into_iter().enumerate() {
        let copies = Arc::clone(&copies);
        thread::Builder::new().name(format!("lab{own} eth0")).spawn(move || {
            // The host has ended.
            let _ = forward(end, own, &copies);
        })?;
    }
    Ok(())
}

fn forward(mut from: UnixStream, own: usize, ends: &[Mutex<UnixStream>]) -> io::Result<()> {
    let mut frame = vec![0; 4 + LONGEST];
    loop {
        from.read_exact(&mut frame[..4])?;
        let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        let whole = frame.get_mut(..4 + length).ok_or(io::ErrorKind::InvalidData)?;
        from.read_exact(&mut whole[4..])?;
        for (_, end) in ends.iter().enumerate().filter(|(at, _)| *at != own) {
            let mut end = end.lock().unwrap_or_else(PoisonError::into_inner);
            if has_room(&end) {
                // A host that has ended takes no frames.
                let _ = end.write_all(whole);
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
