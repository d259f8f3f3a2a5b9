//! Channels: bytes in order, on one connection or on several.
//!
//! ```text
//!  send, recv ─┬─ all on one connection, or short ─► the calling thread, one connection after the other
//!              └─ long ─► the calling thread for one connection, a thread of the crew for each other one
//! ```
//! Invariants:
//! - Nothing is copied on the way: each connection sends and receives slices of what the caller lent, but what TLS encrypts.
//! - A short piece is sent in the order of its bytes: whoever receives them in order gets all of it, whatever else is full.
//! - When one of several connections ends, the channel has: every call that waits on the others ends, and no later one begins.

use crate::conn::{Conn, Incoming, RecvError};
use crate::crew::Crew;
use crate::fault::Fault;
use crate::state::{Conns, LinkState};
use crate::stripe::{Place, STRIPE};
use crate::traffic::{Cap, QUANTUM, metered};
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, PluginError};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::{self, ErrorKind, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// The channel that the connection of a new link carries.
pub const CONTROL: &str = "control";

/// Slices handed to the kernel in one call.
const BATCH: usize = 256;

/// Why a channel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("The link was ended on this side")]
    Aborted,
    #[error("The other host closed the connection")]
    Closed,
    #[error("The connection to the other host was cut")]
    Cut,
    #[error("The connection to the other host broke")]
    Broken(#[source] io::Error),
    #[error("The connection to the other host cannot be trusted any more")]
    Fault(#[source] Fault),
    #[error("The channel ended before, with one of its connections")]
    Ended,
    #[error("Could not start the threads that several `streams` need")]
    Threads(#[source] io::Error),
}

impl From<ChannelError> for PluginError {
    fn from(error: ChannelError) -> PluginError {
        PluginError::new(ErrorCode::PeerLost, error)
    }
}

/// Prepares a connection to carry the channel `name`.
pub(crate) fn tune(conn: &mut Conn, name: &str, link: &LinkState) -> io::Result<()> {
    conn.become_channel()?;
    link.traffic.mark(conn.stream(), name)
}

/// What is to be done on the connections of one channel at the same time.
type Work<'a> = Vec<Box<dyn FnOnce() -> Result<(), ChannelError> + Send + 'a>>;

/// Does all of `work`, in this order or, with a crew, at the same time. The first error counts; `ended` hears of it while others may
/// still be at work, and ends them.
fn do_all(
    crew: Option<&mut Crew>,
    work: Work<'_>,
    ended: impl Fn(&ChannelError) + Sync,
) -> Result<(), ChannelError> {
    let Some(crew) = crew else {
        return work.into_iter().try_for_each(|work| work());
    };
    let first = Mutex::new(None);
    let (first_error, ended) = (&first, &ended);
    crew.run(work.into_iter().map(|work| -> Box<dyn FnOnce() + Send + '_> {
        Box::new(move || {
            if let Err(error) = work() {
                // Kept before the others end and have reasons of their own.
                let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                ended(first.get_or_insert(error));
            }
        })
    }));
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Starts the crew of a channel on so many connections, unless it is there.
fn crew<'a>(crew: &'a mut Option<Crew>, name: &str, conns: usize) -> Result<&'a mut Crew, ChannelError> {
    Ok(match crew {
        Some(crew) => crew,
        none => none.insert(Crew::start(name, conns - 1).map_err(ChannelError::Threads)?),
    })
}

/// The sending end. Dropping it tells the other side that nothing more comes.
pub struct Tx {
    conns: Arc<Conns>,
    link: Arc<LinkState>,
    cap: Option<Arc<Cap>>,
    place: Place,
    /// Each connection's records on their way to the socket.
    sealed: Vec<Vec<u8>>,
    crew: Option<Crew>,
    ended: bool,
}

impl Tx {
    pub(crate) fn new(name: &str, conns: Arc<Conns>, link: &Arc<LinkState>) -> Tx {
        let cap = link.traffic.cap.clone().filter(|_| name != CONTROL);
        let count = conns.0.len();
        let (place, sealed) = (Place::new(count), vec![Vec::new(); count]);
        Tx { conns, link: Arc::clone(link), cap, place, sealed, crew: None, ended: false }
    }

    fn send_all(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        let len = parts.iter().map(|p| p.len()).sum();
        let Tx { conns, link, cap, place, sealed, .. } = self;
        let meter = link.traffic.meters.send.as_deref();
        let cap = cap.as_deref();
        if place.fits(len) {
            let lane = place.lane();
            let mut sending = Sending { conn: &conns.0[lane], link, cap, sealed: &mut sealed[lane] };
            metered(meter, len, || sending.send(parts))?;
            place.advance(len);
            return Ok(());
        }
        let first = place.lane();
        let cut = place.cut(parts);
        let mut lanes: Vec<_> = conns.0.iter().zip(sealed).zip(cut).collect();
        lanes.rotate_left(first);
        let mut work: Work<'_> = Vec::with_capacity(lanes.len());
        for ((conn, sealed), parts) in lanes.into_iter().filter(|(_, parts)| !parts.is_empty()) {
            let link = &**link;
            work.push(Box::new(move || {
                let len = parts.iter().map(|p| p.len()).sum();
                metered(meter, len, || Sending { conn, link, cap, sealed }.send(&parts))
            }));
        }
        let crew = if len > STRIPE { Some(crew(&mut self.crew, "tcp-send", conns.0.len())?) } else { None };
        do_all(crew, work, |_| conns.shut(Shutdown::Both))
    }

    /// The channel's first connection, for whatever does not read or write.
    pub fn stream(&self) -> &TcpStream {
        self.conns.0[0].stream()
    }
}

impl ChannelTx for Tx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        if self.link.is_aborted() {
            return Err(ChannelError::Aborted.into());
        }
        if self.ended {
            return Err(ChannelError::Ended.into());
        }
        let sent = self.send_all(parts);
        if sent.is_err() && self.conns.0.len() > 1 {
            self.ended = true;
            self.conns.shut(Shutdown::Both);
        }
        Ok(sent?)
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.conns.0.iter().for_each(Conn::finish);
    }
}

/// One connection, sending.
struct Sending<'a> {
    conn: &'a Conn,
    link: &'a LinkState,
    cap: Option<&'a Cap>,
    sealed: &'a mut Vec<u8>,
}

impl Sending<'_> {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        let most = if self.cap.is_some() { QUANTUM } else { usize::MAX };
        let mut rest = parts.iter().flat_map(|part| part.chunks(most)).peekable();
        loop {
            let mut batch = [IoSlice::new(&[]); BATCH];
            let (mut used, mut bytes) = (0, 0);
            while let Some(part) = rest.next_if(|part| used < BATCH && bytes <= most - part.len()) {
                batch[used] = IoSlice::new(part);
                used += 1;
                bytes += part.len();
            }
            if used == 0 {
                return if self.link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) };
            }
            if let Some(cap) = self.cap {
                cap.wait(bytes, self.link);
            }
            match self.conn.is_tls() {
                true => self.send_sealed(&mut batch[..used])?,
                false => self.send_batch(&mut batch[..used])?,
            }
        }
    }

    fn send_sealed(&mut self, mut batch: &mut [IoSlice<'_>]) -> Result<(), ChannelError> {
        while !batch.is_empty() {
            self.sealed.clear();
            let taken = self.conn.seal_some(batch, self.sealed).map_err(|e| self.broken(e))?;
            IoSlice::advance_slices(&mut batch, taken);
            self.send_batch(&mut [IoSlice::new(self.sealed)])?;
        }
        Ok(())
    }

    fn broken(&self, error: io::Error) -> ChannelError {
        match Fault::of(&error) {
            _ if self.link.is_aborted() => ChannelError::Aborted,
            Some(fault) => ChannelError::Fault(fault),
            None => ChannelError::Broken(error),
        }
    }

    fn send_batch(&self, mut batch: &mut [IoSlice<'_>]) -> Result<(), ChannelError> {
        while !batch.is_empty() {
            match sendmsg(self.conn.stream(), batch, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
            {
                Ok(sent) => IoSlice::advance_slices(&mut batch, sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.broken(error.into())),
            }
        }
        Ok(())
    }
}

/// The receiving end.
pub struct Rx {
    conns: Arc<Conns>,
    link: Arc<LinkState>,
    place: Place,
    incoming: Vec<Incoming>,
    crew: Option<Crew>,
    ended: bool,
}

impl Rx {
    pub(crate) fn new(conns: Arc<Conns>, link: &Arc<LinkState>) -> Rx {
        let count = conns.0.len();
        let incoming = std::iter::repeat_with(Incoming::default).take(count).collect();
        let link = Arc::clone(link);
        Rx { conns, link, place: Place::new(count), incoming, crew: None, ended: false }
    }

    fn recv_all(&mut self, buf: &mut [u8]) -> Result<(), ChannelError> {
        let len = buf.len();
        let Rx { conns, link, place, incoming, .. } = self;
        let meter = link.traffic.meters.recv.as_deref();
        if place.fits(len) {
            let lane = place.lane();
            metered(meter, len, || recv(&conns.0[lane], link, &mut incoming[lane], &mut [buf]))?;
            place.advance(len);
            return Ok(());
        }
        let first = place.lane();
        let cut = place.cut_mut(buf);
        let mut lanes: Vec<_> = conns.0.iter().zip(incoming).zip(cut).collect();
        lanes.rotate_left(first);
        let mut work: Work<'_> = Vec::with_capacity(lanes.len());
        for ((conn, incoming), mut pieces) in lanes.into_iter().filter(|(_, pieces)| !pieces.is_empty()) {
            let link = &**link;
            work.push(Box::new(move || {
                let len = pieces.iter().map(|p| p.len()).sum();
                metered(meter, len, || recv(conn, link, incoming, &mut pieces))
            }));
        }
        let crew = if len > STRIPE { Some(crew(&mut self.crew, "tcp-recv", conns.0.len())?) } else { None };
        do_all(crew, work, |error| end(conns, error))
    }
}

/// Ends what waits on a channel that cannot go on. The other host hears of it, unless it is the one who said that it is done: it
/// may still receive.
fn end(conns: &Conns, error: &ChannelError) {
    conns.shut(if matches!(error, ChannelError::Closed) { Shutdown::Read } else { Shutdown::Both });
}

/// Fills `pieces` from one connection.
fn recv(
    conn: &Conn,
    link: &LinkState,
    incoming: &mut Incoming,
    pieces: &mut [&mut [u8]],
) -> Result<(), ChannelError> {
    for piece in pieces {
        let mut rest = &mut **piece;
        while !rest.is_empty() {
            let got = incoming.recv(conn, rest);
            // A connection that was shut down still hands out what arrived before: the flag decides.
            if link.is_aborted() {
                return Err(ChannelError::Aborted);
            }
            match got {
                Ok(n) => rest = &mut rest[n..],
                Err(RecvError::Io(e)) if e.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(over(conn, error)),
            }
        }
    }
    if link.is_aborted() { Err(ChannelError::Aborted) } else { Ok(()) }
}

fn over(conn: &Conn, error: RecvError) -> ChannelError {
    match error {
        RecvError::Closed => ChannelError::Closed,
        RecvError::Cut => ChannelError::Cut,
        RecvError::Io(error) => ChannelError::Broken(error),
        RecvError::Fault(fault) => {
            // Nothing that comes can be believed: the sender of this side, and the other host, hear of it so.
            let _ = conn.stream().shutdown(Shutdown::Both);
            ChannelError::Fault(fault)
        }
    }
}

impl ChannelRx for Rx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        if self.ended && !self.link.is_aborted() {
            return Err(ChannelError::Ended.into());
        }
        let received = self.recv_all(buf);
        if let Err(error) = &received
            && self.conns.0.len() > 1
        {
            self.ended = true;
            end(&self.conns, error);
        }
        Ok(received?)
    }
}
