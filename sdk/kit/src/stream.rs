//! Transports over byte streams: a link whose channels are sockets of their own, so bulk never waits in front of a heartbeat.
//!
//! ```text
//!  transport: connect, accept ──► a socket for each channel
//!                                        │
//!  Channels::open(limit, attempt) ◄──────┘         LinkAbort::abort, from any thread
//!        │                                                  │
//!        └──► ChannelTx, ChannelRx ── send, recv ── until ◄─┘ or the peer ends: PeerLost
//! ```
//! Invariants:
//! - Once a link is ended, each call on its channels is `PeerLost`, those that wait and those made later, and so is `open`; what
//!   had arrived counts for nothing.
//! - A socket is closed when both halves of its channel are dropped; the link itself keeps none open.
//! - Bytes are buffered in the kernel alone.
#![forbid(unsafe_code)]

use aventine_api::{Channel, ChannelRx, ChannelTx, ErrorCode, LinkAbort, PluginError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// What failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the link was ended on this side")]
    Ended,
    #[error("the channel has ended")]
    Lost(#[source] io::Error),
    #[error("the channel cannot be opened")]
    Open(#[source] io::Error),
    #[error("the other side has not opened the channel in {0:?}")]
    NotOpened(Duration),
}

impl From<Failure> for PluginError {
    fn from(failure: Failure) -> PluginError {
        let code = match failure {
            Failure::NotOpened(_) => ErrorCode::TimedOut,
            Failure::Ended | Failure::Lost(_) | Failure::Open(_) => ErrorCode::PeerLost,
        };
        PluginError::new(code, failure)
    }
}

/// Calls `attempt` until it succeeds or `limit` has passed, every `pause`; at least once. It is told what is left of the limit.
/// The error is the last one.
pub fn retry<T>(
    limit: Duration,
    pause: Duration,
    mut attempt: impl FnMut(Duration) -> io::Result<T>,
) -> io::Result<T> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match attempt(left) {
            Err(_) if !left.is_zero() => thread::sleep(pause.min(left)),
            done => return done,
        }
    }
}

/// Fills `buf` from a socket; `TimedOut` where that takes longer than `limit`, however slowly bytes come, and `UnexpectedEof`
/// where the other side ends before. For what a connection begins with, which may be a stranger's.
pub fn read_within(socket: &impl AsFd, mut buf: &mut [u8], limit: Duration) -> io::Result<()> {
    let end = Instant::now() + limit;
    while !buf.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match recv(socket, &mut *buf, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((read, _)) => buf = &mut buf[read..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The channels of one link.
#[derive(Default)]
pub struct Channels(Arc<Sockets>);

impl Channels {
    /// Opens one more channel, over the stream socket that `attempt` comes to: a `UnixStream`, a `TcpStream`, or what else is
    /// one, blocking and without time limits of its own.
    ///
    /// While `attempt` has `None` it is called again; it waits itself, for a short time. `TimedOut` once `limit` has passed,
    /// `PeerLost` where it fails or the link has been ended. For [`aventine_api::Link::open`].
    pub fn open<T: Into<OwnedFd>>(
        &self,
        limit: Duration,
        mut attempt: impl FnMut() -> io::Result<Option<T>>,
    ) -> Result<Channel, PluginError> {
        let end = Instant::now() + limit;
        loop {
            self.0.check()?;
            if let Some(socket) = attempt().map_err(Failure::Open)? {
                return Ok(self.0.channel(socket.into())?);
            }
            if Instant::now() >= end {
                return Err(Failure::NotOpened(limit).into());
            }
        }
    }

    /// What ends all of them, from any thread. For [`aventine_api::Link::aborter`].
    pub fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.0) as Arc<dyn LinkAbort>
    }
}

/// The sockets of a link's channels. Weak: a channel ends when both its halves are dropped.
#[derive(Default)]
struct Sockets {
    ended: AtomicBool,
    all: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Sockets {
    fn check(&self) -> Result<(), Failure> {
        if self.ended.load(SeqCst) { Err(Failure::Ended) } else { Ok(()) }
    }

    fn channel(self: &Arc<Self>, socket: OwnedFd) -> Result<Channel, Failure> {
        let half = Half { socket: Arc::new(socket), sockets: Arc::clone(self) };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|socket| socket.strong_count() > 0);
        all.push(Arc::downgrade(&half.socket));
        // An abort either sees the socket or is seen here.
        self.check()?;
        Ok((Box::new(half.clone()), Box::new(half)))
    }
}

impl LinkAbort for Sockets {
    fn abort(&self) {
        self.ended.store(true, SeqCst);
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in all.iter().filter_map(Weak::upgrade) {
            // One that the other side has ended needs none.
            let _ = shutdown(&*socket, Shutdown::Both);
        }
    }
}

/// One half of a channel.
#[derive(Clone)]
struct Half {
    socket: Arc<OwnedFd>,
    sockets: Arc<Sockets>,
}

impl Half {
    /// What an ended link's sockets still have in them counts for nothing.
    fn done(&self, done: io::Result<()>) -> Result<(), PluginError> {
        self.sockets.check()?;
        Ok(done.map_err(Failure::Lost)?)
    }
}

impl Read for Half {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&*self.socket, buf, RecvFlags::empty())?.0)
    }
}

impl Write for Half {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // An error, not a signal, where nobody reads.
        Ok(send(&*self.socket, buf, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ChannelTx for Half {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let done = parts.iter().try_for_each(|part| self.write_all(part));
        self.done(done)
    }
}

impl ChannelRx for Half {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        let done = self.read_exact(buf);
        self.done(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn an_abort_ends_a_receiver_that_waits_and_what_is_opened_later() {
        let (link, (ours, mut theirs)) = (Channels::default(), tcp());
        let mut ours = Some(ours);
        let (mut tx, mut rx) = link.open(PATIENCE, || Ok(ours.take())).unwrap();
        tx.send(&[b"ab", b"c"]).unwrap();
        let mut got = [0; 3];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
        let waiting = thread::spawn(move || rx.recv(&mut [0]));
        link.aborter().abort();
        assert_eq!(waiting.join().unwrap().unwrap_err().code(), ErrorCode::PeerLost);
        assert_eq!(theirs.read(&mut got).unwrap(), 0);
        let later = link.open(PATIENCE, || UnixStream::pair().map(|(a, _)| Some(a)));
        assert_eq!(later.err().unwrap().code(), ErrorCode::PeerLost);
    }

    #[test]
    fn nobody_is_a_time_out_and_a_failure_a_lost_peer() {
        let link = Channels::default();
        let nobody = link.open(Duration::ZERO, || Ok(None::<UnixStream>)).err().unwrap();
        assert_eq!(nobody.code(), ErrorCode::TimedOut);
        let broken = link.open(PATIENCE, || Err::<Option<UnixStream>, _>(ErrorKind::BrokenPipe.into()));
        assert_eq!(broken.err().unwrap().code(), ErrorCode::PeerLost);
    }

    #[test]
    fn a_beginning_in_drops_does_not_outlast_its_limit() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let drops = thread::spawn(move || while theirs.write_all(&[0]).is_ok() {});
        let mut all = vec![0; 1 << 30];
        let limit = Duration::from_millis(30);
        assert_eq!(read_within(&ours, &mut all, limit).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(ours);
        drops.join().unwrap();
    }

    #[test]
    fn an_attempt_is_made_until_one_succeeds_or_the_limit_has_passed() {
        let mut left = 3;
        let done = retry(PATIENCE, Duration::ZERO, |_| {
            left -= 1;
            if left == 0 { Ok(7) } else { Err(ErrorKind::NotFound.into()) }
        });
        assert_eq!(done.unwrap(), 7);
        let failed = retry(Duration::ZERO, Duration::ZERO, |_| Err::<(), _>(ErrorKind::NotFound.into()));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
