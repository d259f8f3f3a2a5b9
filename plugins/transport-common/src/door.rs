//! The standby's listening sockets, and the thread that hears every newcomer out.
//!
//! ```text
//!  accepted ─► TLS handshake, greeting ─┬─ welcome ─► hall
//!                 │                     └─ refused ─► draining ─► closed
//!                 └─ too slow, hung up, not Aventine ─► closed
//! ```
//! What strangers may cost is bounded: [`MAX_STRANGERS`] at once, [`PATIENCE`] each. A refused connection is read until the primary hangs up, because closing it with unread bytes would destroy the
//! answer on its way.

use crate::ListenError;
use crate::conn::{Conn, Security};
use crate::dial::is_again;
use crate::fault::Fault;
use crate::hall::Hall;
use crate::link::TcpLink;
use crate::traffic::Traffic;
use crate::wire::{Greeting, GreetingError, Progress, Refusal, is_plain_greeting, read_greeting};
use aventine_api::{Link, Listener, PluginError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a newcomer may take for its greeting, and a refused one to hang up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Newcomers heard at once; one more shows the oldest out.
const MAX_STRANGERS: usize = 64;
/// Rest after the system could not give a new connection (no file descriptors, no memory).
const REST: Duration = Duration::from_millis(100);

/// The listening end, until it is dropped.
pub struct TcpListening {
    hall: Arc<Hall>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl TcpListening {
    /// Listens on all of `addresses`.
    pub(crate) fn start(
        addresses: &[SocketAddr],
        security: Security,
        traffic: Traffic,
    ) -> Result<TcpListening, ListenError> {
        let listeners = addresses.iter().map(|&a| bind(a)).collect::<Result<Vec<_>, _>>()?;
        let hall = Arc::new(Hall::new(traffic));
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| ListenError::Start(e.into()))?;
        let stop = Arc::new(stop);
        let door = Door {
            listeners,
            security,
            hall: Arc::clone(&hall),
            stop: Arc::clone(&stop),
            strangers: Vec::new(),
            rest_until: None,
        };
        let thread = thread::Builder::new()
            .name("tcp-accept".into())
            .spawn(move || door.run())
            .map_err(ListenError::Start)?;
        Ok(TcpListening { hall, stop, thread: Some(thread) })
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l)).map_err(
        |source| match source.kind() {
            ErrorKind::AddrInUse => ListenError::InUse(address),
            ErrorKind::AddrNotAvailable => ListenError::NotHere(address),
            _ => ListenError::Bind { address, source },
        },
    )
}

impl TcpListening {
    /// As [`Listener::accept`].
    pub fn accept_link(&mut self, limit: Duration) -> Result<Option<TcpLink>, PluginError> {
        match self.hall.next(limit) {
            Ok(Some((state, from))) => Ok(Some(TcpLink::accepted(state, from))),
            Ok(None) => Ok(None),
            Err(error) => Err(ListenError::Ended(error).into()),
        }
    }
}

impl Listener for TcpListening {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        Ok(self.accept_link(limit)?.map(|link| Box::new(link) as Box<dyn Link>))
    }
}

impl Drop for TcpListening {
    fn drop(&mut self) {
        // It fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic on the thread has been reported there.
            let _ = thread.join();
        }
    }
}

struct Door {
    listeners: Vec<TcpListener>,
    security: Security,
    hall: Arc<Hall>,
    stop: Arc<OwnedFd>,
    strangers: Vec<Stranger>,
    rest_until: Option<Instant>,
}

impl Door {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            self.rest_until = self.rest_until.filter(|&t| t > now);
            self.strangers.retain(|s| s.deadline > now);
            let ready = match self.wait(now) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    self.hall.end(error.into());
                    return;
                }
            };
            let (stop, rest) = ready.split_first().expect("the stop event is polled first");
            if *stop {
                return;
            }
            let (listeners, strangers) = rest.split_at(self.listeners.len());
            let heard = std::mem::take(&mut self.strangers).into_iter().zip(strangers);
            self.strangers = heard
                .filter_map(
                    |(stranger, &ready)| if ready { stranger.hear(&self.hall) } else { Some(stranger) },
                )
                .collect();
            for at in (0..self.listeners.len()).filter(|&at| listeners[at]) {
                self.let_in(at);
            }
        }
    }

    /// Waits for something to do: ready or not, for the stop event, each listener and each stranger.
    fn wait(&self, now: Instant) -> Result<Vec<bool>, Errno> {
        let listening = if self.rest_until.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::from_borrowed_fd((*self.stop).as_fd(), PollFlags::IN)];
        fds.extend(self.listeners.iter().map(|l| PollFd::new(l, listening)));
        fds.extend(self.strangers.iter().map(|s| PollFd::new(s.conn.stream(), PollFlags::IN)));
        let next = self.strangers.iter().map(|s| s.deadline).chain(self.rest_until).min();
        let limit = next.map(|at| {
            // Rounded up, so that it has passed on return.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        });
        poll(&mut fds, limit.as_ref())?;
        Ok(fds.iter().map(|f| !f.revents().is_empty()).collect())
    }

    /// Accepts what waits at one listener.
    fn let_in(&mut self, at: usize) {
        for _ in 0..MAX_STRANGERS {
            match self.listeners[at].accept() {
                Ok((stream, from)) => {
                    let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
                    let conn = match ready.and_then(|()| self.security.accepted(stream)) {
                        Ok(conn) => conn,
                        Err(error) => {
                            tracing::debug!(%from, %error, "A connection ended at once");
                            continue;
                        }
                    };
                    if self.strangers.len() == MAX_STRANGERS {
                        let oldest = self.strangers.remove(0);
                        tracing::debug!(from = %oldest.from, "A silent connection made room for a new one");
                    }
                    self.strangers.push(Stranger::new(conn, from));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    tracing::warn!(%error, "A new connection could not be accepted");
                    self.rest_until = Some(Instant::now() + REST);
                    return;
                }
            }
        }
    }
}

/// A connection that is no channel yet.
struct Stranger {
    conn: Conn,
    from: SocketAddr,
    deadline: Instant,
    /// Whether anything was read.
    begun: bool,
    /// Its greeting so far; `None` once it was refused.
    greeting: Option<Vec<u8>>,
}

impl Stranger {
    fn new(conn: Conn, from: SocketAddr) -> Stranger {
        let deadline = Instant::now() + PATIENCE;
        Stranger { conn, from, deadline, begun: false, greeting: Some(Vec::new()) }
    }

    /// Reads what came; `None` when it is a stranger no more.
    fn hear(mut self, hall: &Hall) -> Option<Stranger> {
        let Some(mut greeting) = self.greeting.take() else { return self.drain() };
        if !self.begun && self.conn.is_tls() && self.conn.peek().is_some_and(is_plain_greeting) {
            tracing::warn!(
                from = %self.from,
                "A connection was refused: it is not encrypted; the other host has `unsafe_plaintext = true` and this \
                 one `tls`"
            );
            return self.refuse_plain(Refusal::Encrypted);
        }
        self.begun = true;
        match read_on(&mut self.conn, &mut greeting) {
            Ok(Some(done)) => self.welcome(done, hall),
            Ok(None) => {
                self.greeting = Some(greeting);
                Some(self)
            }
            Err(ReadError::Fault(fault)) => {
                tracing::warn!(from = %self.from, "A connection was refused: {fault}");
                self.hang_up()
            }
            Err(ReadError::Io(error)) => {
                tracing::debug!(from = %self.from, %error, "A connection ended before its greeting");
                None
            }
            Err(ReadError::Greeting(error)) => {
                tracing::warn!(from = %self.from, "A connection was refused: {error}");
                match error {
                    GreetingError::NotAventine => None,
                    GreetingError::Encrypted => self.refuse_plain(Refusal::Plaintext),
                    GreetingError::OtherVersion { .. } => self.refuse(Refusal::OtherVersion),
                    GreetingError::Name | GreetingError::Stream { .. } => self.refuse(Refusal::BadName),
                }
            }
        }
    }

    fn welcome(mut self, greeting: Greeting, hall: &Hall) -> Option<Stranger> {
        let channel = greeting.channel.clone();
        match hall.admit(greeting, self.conn, self.from) {
            Ok(None) => None,
            Ok(Some((conn, refusal))) => {
                tracing::warn!(from = %self.from, channel, answer = ?refusal, "A connection was refused");
                self.conn = conn;
                self.refuse(refusal)
            }
            Err(error) => {
                tracing::warn!(from = %self.from, channel, %error, "A connection ended during its greeting");
                None
            }
        }
    }

    fn refuse(mut self, refusal: Refusal) -> Option<Stranger> {
        // The answer fits into the empty socket, unless the stranger has gone.
        self.conn.write_all(&refusal.encode()).and_then(|()| self.conn.flush()).ok()?;
        self.hang_up()
    }

    /// Refuses one who is not set up as this host is.
    fn refuse_plain(mut self, refusal: Refusal) -> Option<Stranger> {
        self.conn.write_plain(&refusal.encode()).ok()?;
        self.hang_up()
    }

    fn hang_up(self) -> Option<Stranger> {
        self.conn.stream().shutdown(Shutdown::Write).ok()?;
        self.drain()
    }

    fn drain(mut self) -> Option<Stranger> {
        match self.conn.discard() {
            Ok(false) => None,
            Ok(true) => Some(self),
            Err(e) if is_again(&e) => Some(self),
            Err(_) => None,
        }
    }
}

enum ReadError {
    Io(io::Error),
    Fault(Fault),
    Greeting(GreetingError),
}

/// Reads on, but never past the greeting: what follows belongs to the channel.
fn read_on(conn: &mut Conn, greeting: &mut Vec<u8>) -> Result<Option<Greeting>, ReadError> {
    loop {
        let more = match read_greeting(greeting).map_err(ReadError::Greeting)? {
            Progress::Done(done) => return Ok(Some(done)),
            Progress::More(more) => more,
        };
        let start = greeting.len();
        greeting.resize(start + more, 0);
        let got = conn.read(&mut greeting[start..]);
        greeting.truncate(start + *got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => return Err(ReadError::Io(ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(e) if is_again(&e) => return Ok(None),
            Err(e) => return Err(Fault::of(&e).map_or(ReadError::Io(e), ReadError::Fault)),
        }
    }
}
