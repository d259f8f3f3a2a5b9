//! One request to the kernel, and its answer.

use crate::wire::{Attributes, Message, Messages, Request, WireError, u32_at};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// `NLM_F_REQUEST`, in every request.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`: the kernel answers even when all is well.
const ACK: u16 = 4;
/// `NLM_F_ECHO`: an answer that would go to listeners alone comes here as well.
pub(crate) const ECHO: u16 = 8;
/// `NLM_F_REPLACE`, in requests that make something.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`, in requests that make something.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`, in requests that make something.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`, in requests that ask.
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`, in answers: something changed meanwhile, the list is not to be relied on.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED`, in answers: the request is not repeated behind the error.
const CAPPED: u16 = 0x100;
/// `NLMSG_ERROR`: the answer to a request, error zero for success.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: a list is complete.
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ERROR_TEXT: u16 = 1;
/// How often a list is asked for that changes meanwhile.
const TRIES: u32 = 16;
/// Longer than any datagram that the kernel makes for a list.
const DATAGRAM: usize = 64 << 10;

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("Could not open a netlink socket")]
    Open(#[source] io::Error),
    /// The request did not reach it, or the answer did not come back.
    #[error("Could not talk to the kernel by netlink")]
    Talk(#[source] io::Error),
    /// It said no, and perhaps why.
    #[error("The kernel refused{}", said.as_ref().map(|s| format!(" ({s})")).unwrap_or_default())]
    Refused {
        /// Its own words.
        said: Option<String>,
        /// Its error number.
        source: io::Error,
    },
    /// Its answer makes no sense.
    #[error("The kernel's answer makes no sense")]
    Malformed(#[from] WireError),
    /// A list changed each time that it was asked for.
    #[error("The kernel's devices change too fast to be listed")]
    Restless,
}

impl NetlinkError {
    /// The kernel's error number, if it said no.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The device, qdisc or filter in question is not there.
    pub fn is_absent(&self) -> bool {
        const ENOENT: i32 = 2;
        const ENODEV: i32 = 19;
        matches!(self.errno(), Some(ENOENT | ENODEV))
    }

    /// The kernel does not know the kind of device, qdisc, classifier or action, and could not load it.
    pub fn is_unknown_kind(&self) -> bool {
        const ENOENT: i32 = 2;
        const EOPNOTSUPP: i32 = 95;
        matches!(self.errno(), Some(ENOENT | EOPNOTSUPP))
    }

    /// The right is missing: `CAP_NET_ADMIN`.
    pub fn is_not_permitted(&self) -> bool {
        const EPERM: i32 = 1;
        const EACCES: i32 = 13;
        self.errno().is_some_and(|e| e == EPERM || e == EACCES)
    }

    /// Something is there already.
    pub fn is_taken(&self) -> bool {
        const EEXIST: i32 = 17;
        self.errno() == Some(EEXIST)
    }
}

/// A netlink socket of the network namespace that the calling thread was in when it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Netlink {
    /// Opens one.
    pub fn open() -> Result<Netlink, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // The kernel's words instead of a bare number, and no echo of the request.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Open)?;
        Ok(Netlink { socket, sequence: 0, datagram: vec![0; DATAGRAM] })
    }

    /// Has something changed; returns once the kernel has said that it is done.
    pub(crate) fn change(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.ask(request, |_| {})
    }

    /// Asks for one thing.
    pub(crate) fn ask(
        &mut self,
        request: Request,
        take: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.transact(request, ACK, take).map(drop)
    }

    /// Asks for a whole list, again when it changed meanwhile.
    pub(crate) fn list<T>(
        &mut self,
        request: impl Fn() -> Request,
        mut take: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..TRIES {
            let mut found = Vec::new();
            if self.transact(request(), DUMP, |message| found.extend(take(message)))? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Restless)
    }

    /// Whether what was answered is of one moment.
    fn transact(
        &mut self,
        request: Request,
        flags: u16,
        mut take: impl FnMut(Message<'_>),
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request.finish(self.sequence, REQUEST | flags);
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&request, &kernel, 0).map_err(NetlinkError::Talk)?;
        let mut whole = true;
        loop {
            let length = match self.socket.recv(&mut &mut self.datagram[..], 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(NetlinkError::Talk)?,
            };
            for message in Messages::of(self.datagram.get(..length).unwrap_or_default()) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    ERROR => return verdict(&message).map(|()| whole),
                    DONE => return Ok(whole),
                    _ => take(message),
                }
            }
        }
    }
}

fn verdict(message: &Message<'_>) -> Result<(), NetlinkError> {
    let Some(code) = u32_at(message.body, 0) else { return Err(NetlinkError::Malformed(short(message))) };
    if code == 0 {
        return Ok(());
    }
    // Behind the code comes the request's header, and unless it is capped the rest of the request.
    let repeated = u32_at(message.body, 4).map_or(0, |n| n as usize);
    let skipped = 4 + if message.flags & CAPPED != 0 { 16 } else { repeated.next_multiple_of(4) };
    let words = Attributes::of(message.body.get(skipped..).unwrap_or_default());
    let errno = code.cast_signed().wrapping_neg();
    Err(NetlinkError::Refused { said: words.text(ERROR_TEXT), source: io::Error::from_raw_os_error(errno) })
}

fn short(message: &Message<'_>) -> WireError {
    WireError { said: 4, there: message.body.len() }
}
