//! The primary's way to a connection that carries a channel.

use crate::channel::tune;
use crate::config::Address;
use crate::conn::{Conn, Security};
use crate::fault::Fault;
use crate::state::LinkState;
use crate::wire::{ANSWER_LEN, Answer, AnswerError, Greeting, Refusal, VERSION, is_plain_answer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("The name {host:?} has no address")]
    Resolve { host: String, source: io::Error },
    #[error("The name {host:?} was not resolved in time")]
    ResolveSlow { host: String },
    #[error("Could not connect to {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{address} did not answer in time")]
    Slow { address: SocketAddr },
    #[error("{address} closed the connection without an answer")]
    Closed { address: SocketAddr },
    #[error("Too many primaries wait for the standby at {address}")]
    Busy { address: SocketAddr },
    #[error("What answers at {address} is no Aventine standby; check `peer` and its port")]
    NotAventine { address: SocketAddr },
    #[error(
        "The standby at {address} speaks version {theirs} of the transport, this host version {VERSION}; install the \
         same Aventine on both"
    )]
    OtherVersion { address: SocketAddr, theirs: u16 },
    #[error("The standby at {address} no longer knows this link; it was restarted or ended the link")]
    UnknownLink { address: SocketAddr },
    #[error("The standby at {address} has this channel already")]
    Taken { address: SocketAddr },
    #[error("The standby at {address} refused the channel's name")]
    BadName { address: SocketAddr },
    #[error("The standby at {address} encrypts and this host does not; give both hosts the same `tls`")]
    Encrypted { address: SocketAddr },
    #[error(
        "The standby at {address} has `unsafe_plaintext = true` and this host `tls`; give both hosts the same `tls`"
    )]
    Plaintext { address: SocketAddr },
    #[error("The standby at {address} and this host do not trust each other")]
    Trust { address: SocketAddr, source: Fault },
    #[error("The address is this host's own")]
    Own,
    #[error(
        "{0}, the `source` in [transport], is no address of this host; use one that `ip address` shows, or leave it out"
    )]
    Source(IpAddr),
    #[error(
        "{address} cannot be reached from {from}, the `source` in [transport]: one is IPv4, the other IPv6"
    )]
    Family { address: SocketAddr, from: IpAddr },
    #[error("The link was ended on this side")]
    Aborted,
}

impl DialError {
    /// Whether trying again can help.
    pub(crate) fn is_passing(&self) -> bool {
        use DialError::{Busy, Closed, Connect, Family, Resolve, ResolveSlow, Slow};
        matches!(
            self,
            Resolve { .. }
                | ResolveSlow { .. }
                | Connect { .. }
                | Slow { .. }
                | Closed { .. }
                | Busy { .. }
                | Family { .. }
        )
    }

    /// Whether the two hosts are not set up alike.
    pub(crate) fn is_refusal(&self) -> bool {
        use DialError::{Encrypted, OtherVersion, Plaintext, Trust};
        matches!(self, OtherVersion { .. } | Encrypted { .. } | Plaintext { .. } | Trust { .. })
    }
}

/// The addresses of a host. The system's resolver cannot be interrupted, so a name is resolved on a thread that
/// outlives the call when the resolver is slower than `deadline`; it owns nothing but the name.
pub(crate) fn resolve(address: &Address, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
    let Address { host, port } = address.clone();
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![(ip, port).into()]);
    }
    let (tx, rx) = mpsc::sync_channel(1);
    let name = host.clone();
    thread::Builder::new()
        .name("tcp-resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            // Nobody listens any more once the deadline has passed.
            let _ = tx.send(found);
        })
        .map_err(|source| DialError::Resolve { host: host.clone(), source })?;
    match rx.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(found)) if found.is_empty() => {
            Err(DialError::Resolve { host, source: ErrorKind::AddrNotAvailable.into() })
        }
        Ok(Ok(found)) => Ok(found),
        Ok(Err(source)) => Err(DialError::Resolve { host, source }),
        Err(_) => Err(DialError::ResolveSlow { host }),
    }
}

/// A connection that carries a channel.
pub(crate) struct Dialled {
    pub(crate) conn: Conn,
    /// Where it leads.
    pub(crate) to: SocketAddr,
    /// How many connections the channel has.
    pub(crate) streams: u8,
}

/// Tries each address in turn until one carries the channel of `greeting`; each gets its share of the time left.
/// Ends early when `link` is aborted.
pub(crate) fn dial(
    addresses: &[SocketAddr],
    greeting: &Greeting,
    deadline: Instant,
    link: &LinkState,
    security: &Security,
) -> Result<Dialled, DialError> {
    let mut last = None;
    for (at, &address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / (addresses.len() - at) as u32;
        match (Attempt { address, deadline: now + share, link, security }).run(greeting) {
            Ok((conn, streams)) => return Ok(Dialled { conn, to: address, streams }),
            Err(e) if e.is_passing() => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or(DialError::Own))
}

/// One connection being made, in non-blocking mode.
struct Attempt<'a> {
    address: SocketAddr,
    deadline: Instant,
    link: &'a LinkState,
    security: &'a Security,
}

impl Attempt<'_> {
    fn run(&self, greeting: &Greeting) -> Result<(Conn, u8), DialError> {
        let stream = self.connect()?;
        let mut conn = self.security.dialled(stream, self.address).map_err(|e| self.failed(e))?;
        let asked = self.write(&mut conn, &greeting.encode()).and_then(|()| self.read_answer(&mut conn));
        if let Err(DialError::Trust { .. }) = asked {
            self.part(&mut conn);
        }
        let answer = asked?;
        let address = self.address;
        match Answer::decode(&answer) {
            // The first connection is told their number, the others say it.
            Ok(Answer::Welcome(n))
                if n == greeting.streams || greeting.stream == 0 && n < greeting.streams =>
            {
                tune(&mut conn, &greeting.channel, self.link).map_err(|e| self.failed(e))?;
                Ok((conn, n))
            }
            Ok(Answer::Refused(Refusal::UnknownLink)) => Err(DialError::UnknownLink { address }),
            Ok(Answer::Refused(Refusal::Taken)) => Err(DialError::Taken { address }),
            Ok(Answer::Refused(Refusal::Busy)) => Err(DialError::Busy { address }),
            Ok(Answer::Refused(Refusal::BadName)) => Err(DialError::BadName { address }),
            Ok(Answer::Refused(Refusal::Encrypted)) => Err(DialError::Encrypted { address }),
            Ok(Answer::Refused(Refusal::Plaintext)) => Err(DialError::Plaintext { address }),
            Ok(Answer::Welcome(_) | Answer::Refused(Refusal::OtherVersion))
            | Err(AnswerError::NotAventine) => Err(DialError::NotAventine { address }),
            Err(AnswerError::OtherVersion(theirs)) => Err(DialError::OtherVersion { address, theirs }),
        }
    }

    fn failed(&self, source: io::Error) -> DialError {
        let address = self.address;
        match Fault::of(&source) {
            Some(Fault::NotTls) => DialError::NotAventine { address },
            Some(fault) => DialError::Trust { address, source: fault },
            None if source.kind() == ErrorKind::UnexpectedEof => DialError::Closed { address },
            None => DialError::Connect { address, source },
        }
    }

    fn connect(&self) -> Result<TcpStream, DialError> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))
            .and_then(|s| s.set_nonblocking(true).map(|()| s))
            .map_err(|e| self.failed(e))?;
        if let Some(from) = self.link.traffic.options.source {
            self.bind(&socket, from)?;
        }
        match socket.connect(&self.address.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
                self.wait(&socket, PollFlags::OUT)?;
                if let Some(e) = socket.take_error().map_err(|e| self.failed(e))? {
                    return Err(self.failed(e));
                }
            }
            Err(e) => return Err(self.failed(e)),
        }
        let stream = TcpStream::from(socket);
        // A connection to a port of this very host that nobody listens on can meet itself.
        if stream.local_addr().is_ok_and(|local| local == self.address) {
            return Err(self.failed(ErrorKind::ConnectionRefused.into()));
        }
        stream.set_nodelay(true).map_err(|e| self.failed(e))?;
        Ok(stream)
    }

    fn bind(&self, socket: &Socket, from: IpAddr) -> Result<(), DialError> {
        if from.is_ipv4() != self.address.is_ipv4() {
            return Err(DialError::Family { address: self.address, from });
        }
        socket.bind(&SocketAddr::new(from, 0).into()).map_err(|error| match error.kind() {
            ErrorKind::AddrNotAvailable => DialError::Source(from),
            _ => self.failed(error),
        })
    }

    fn write(&self, conn: &mut Conn, mut bytes: &[u8]) -> Result<(), DialError> {
        while !bytes.is_empty() {
            match conn.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) => self.wait_out(conn, e)?,
            }
        }
        loop {
            match conn.flush() {
                Ok(()) => return Ok(()),
                Err(e) => self.wait_out(conn, e)?,
            }
        }
    }

    /// Waits for what `error` lacks, if it is only that.
    fn wait_out(&self, conn: &Conn, error: io::Error) -> Result<(), DialError> {
        if is_again(&error) { self.wait(conn.stream(), PollFlags::OUT) } else { Err(self.failed(error)) }
    }

    fn read_answer(&self, conn: &mut Conn) -> Result<[u8; ANSWER_LEN], DialError> {
        self.wait(conn.stream(), PollFlags::IN)?;
        if conn.is_tls() && conn.peek().is_some_and(is_plain_answer) {
            return Err(DialError::Plaintext { address: self.address });
        }
        let mut answer = [0; ANSWER_LEN];
        let mut got = 0;
        while got < ANSWER_LEN {
            match conn.read(&mut answer[got..]) {
                Ok(0) => return Err(DialError::Closed { address: self.address }),
                Ok(n) => got += n,
                Err(e) if conn.wants_write() => self.wait_out(conn, e)?,
                Err(e) if is_again(&e) => self.wait(conn.stream(), PollFlags::IN)?,
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(answer)
    }

    /// Lets the other side read why this one hangs up: closing a connection with unread bytes would destroy that.
    fn part(&self, conn: &mut Conn) {
        if conn.stream().shutdown(Shutdown::Write).is_err() {
            return;
        }
        while self.wait(conn.stream(), PollFlags::IN).is_ok() {
            match conn.discard() {
                Ok(true) => {}
                Err(e) if is_again(&e) => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Waits until `fd` is ready.
    fn wait(&self, fd: impl AsFd, ready: PollFlags) -> Result<(), DialError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DialError::Slow { address: self.address });
            }
            let limit = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            let fd = fd.as_fd();
            let mut fds = [
                PollFd::from_borrowed_fd(fd, ready),
                PollFd::from_borrowed_fd(self.link.wake(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&limit)) {
                Ok(_) if !fds[1].revents().is_empty() => return Err(DialError::Aborted),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed(e.into())),
            }
        }
    }
}

/// Whether a non-blocking call is to be made again.
pub(crate) fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::CONTROL;
    use crate::door::TcpListening;
    use crate::traffic::Traffic;
    use std::net::TcpListener;
    use std::time::Duration;

    /// As a name with several addresses resolves.
    #[test]
    fn dead_addresses_cost_their_share_and_the_next_one_is_tried() {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let at = |last: u8| SocketAddr::from(([127, 32 + last, high, low], 7400));
        let (refuses, mute, answers) = (at(0), at(1), at(2));
        // Its backlog takes connections, and nobody answers them.
        let _mute = TcpListener::bind(mute).unwrap();
        let _standby = TcpListening::start(&[answers], Security::Plaintext, Traffic::default()).unwrap();
        let link = LinkState::new(Traffic::default()).unwrap();
        let dial = |addresses: &[SocketAddr], id: u8, limit| {
            let greeting = Greeting { link: [id; 16], channel: CONTROL.into(), stream: 0, streams: 1 };
            let (begun, limit) = (Instant::now(), Duration::from_millis(limit));
            let dialled = dial(addresses, &greeting, begun + limit, &link, &Security::Plaintext);
            (dialled.map(|d| d.to), begun.elapsed())
        };
        // However long the limit is, a refusal takes none of it.
        assert_eq!(dial(&[refuses, answers], 1, 1 << 30).0.unwrap(), answers);
        let (to, took) = dial(&[mute, answers, refuses], 2, 3_000);
        assert_eq!(to.unwrap(), answers);
        assert!(took >= Duration::from_millis(1000), "its share is a third: {took:?}");
        let (none, took) = dial(&[refuses, mute], 3, 300);
        assert!(matches!(none, Err(DialError::Slow { address }) if address == mute), "{none:?}");
        assert!(took >= Duration::from_millis(300), "who comes last has all that is left: {took:?}");
    }
}
