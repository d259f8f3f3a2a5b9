//! A unix stream socket that carries Ethernet frames: a 32-bit big-endian length before each (QEMU's `stream` netdev).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Longest frame that QEMU sends: a 64 KiB segment with headers.
pub(crate) const FRAME_LIMIT: usize = 4096 + 65536;
/// Bytes that may wait for a slow reader.
const BACKLOG: usize = 4 << 20;
const READ: usize = 256 << 10;

/// What reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything there was has been read.
    Empty,
    /// More may be there.
    More,
    /// The other end has closed.
    Closed,
}

/// The other end sends no frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// A length that no frame has.
    #[error("A frame of {0} bytes was announced; the longest is {FRAME_LIMIT}")]
    Length(usize),
    /// The socket failed.
    #[error("The socket failed")]
    Io(#[from] io::Error),
}

/// One connection, non-blocking.
pub(crate) struct Port {
    socket: UnixStream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    written: usize,
}

impl Port {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Port> {
        socket.set_nonblocking(true)?;
        Ok(Port { socket, input: vec![0; READ], start: 0, end: 0, output: Vec::new(), written: 0 })
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Reads once and gives every whole frame to `frame`.
    pub(crate) fn read(&mut self, mut frame: impl FnMut(&[u8])) -> Result<Outcome, PortError> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let got = match self.socket.read(&mut self.input[self.end..]) {
            Ok(0) => return Ok(Outcome::Closed),
            Ok(got) => got,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Empty),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(Outcome::More),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(Outcome::Closed),
            Err(e) => return Err(e.into()),
        };
        self.end += got;
        while let Some(body) = next_frame(&self.input[self.start..self.end])? {
            frame(&self.input[self.start + 4..self.start + 4 + body]);
            self.start += 4 + body;
        }
        Ok(if self.end == self.input.len() { Outcome::More } else { Outcome::Empty })
    }

    /// Queues a frame and writes what the socket takes; `false` when the backlog is full.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<bool, PortError> {
        if self.backlog() > BACKLOG {
            return Ok(false);
        }
        self.output.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.output.extend_from_slice(frame);
        self.flush()?;
        Ok(true)
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), PortError> {
        while self.backlog() > 0 {
            match self.socket.write(&self.output[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Whether the other end has read everything that was sent. Never wrongly `true`.
    pub(crate) fn all_read(&self) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes an int, which `unread` is. Of a unix socket it is the memory of what was not read.
        let asked = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        self.backlog() == 0 && asked == 0 && unread == 0
    }

    /// Bytes that wait for the socket.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len() - self.written
    }
}

/// The length of the frame that `bytes` begin with, if all of it is there.
fn next_frame(bytes: &[u8]) -> Result<Option<usize>, PortError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > FRAME_LIMIT {
        return Err(PortError::Length(length));
    }
    Ok((rest.len() >= length).then_some(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_other_end_has_not_read_is_seen() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut port = Port::new(near).unwrap();
        assert!(port.all_read());
        for length in [1, 60, 1500, FRAME_LIMIT] {
            assert!(port.send(&vec![7; length]).unwrap());
            assert!(port.send(&[8; 60]).unwrap());
            let mut wire = vec![0; 4 + length + 4 + 60];
            let (last, all) = wire.split_last_mut().unwrap();
            assert!(!port.all_read());
            far.read_exact(all).unwrap();
            assert!(!port.all_read(), "a byte is left");
            far.read_exact(std::slice::from_mut(last)).unwrap();
            assert!(port.all_read());
        }
        while port.backlog() == 0 {
            assert!(port.send(&[9; 1500]).unwrap());
        }
        let mut sink = vec![0; 1 << 20];
        far.set_nonblocking(true).unwrap();
        while far.read(&mut sink).is_ok() {}
        assert!(!port.all_read(), "a part waits here");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn frames_survive_any_split(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..3000), 1..20),
            cuts in proptest::collection::vec(1usize..2000, 1..50),
        ) {
            let (mut far, near) = UnixStream::pair().unwrap();
            let mut port = Port::new(near).unwrap();
            let mut wire: Vec<u8> = Vec::new();
            for frame in &frames {
                wire.extend((frame.len() as u32).to_be_bytes());
                wire.extend(frame);
            }
            let mut seen = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !wire.is_empty() {
                let n = cuts.next().unwrap().min(wire.len());
                far.write_all(&wire[..n]).unwrap();
                wire.drain(..n);
                prop_assert_eq!(port.read(|f| seen.push(f.to_vec())).unwrap(), Outcome::Empty);
            }
            prop_assert_eq!(seen, frames);
            drop(far);
            // A process that another test starts holds a copy of `far` for a moment.
            while port.read(|_| ()).unwrap() != Outcome::Closed {
                std::thread::yield_now();
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let (mut far, near) = UnixStream::pair().unwrap();
            let mut port = Port::new(near).unwrap();
            far.write_all(&bytes).unwrap();
            let _ = port.read(|f| assert!(f.len() <= FRAME_LIMIT));
        }
    }
}
