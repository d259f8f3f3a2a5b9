//! How a channel's queue pairs find each other.
//!
//! ```text
//!  primary                                   standby
//!                                            listen at the address that the primary's TLS connection came to
//!  address, route ─► queue pair ─► connect ─► request ─► ticket right? ─► queue pair ─► accept
//!                                                        └ wrong: refused, and the next one
//!  established ◄───────────────────────────────────────────────────────────► established
//! ```
//! Every wait ends with the deadline, with the link, and when the other side closes the channel's TLS connection.

use crate::endpoint::{Endpoint, MakeError, Use};
use crate::ffi::{ConnParam, event};
use crate::library::Libraries;
use crate::resource::{Event, Events, Id, done};
use crate::wire::{TICKET, is_ticket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::SockAddr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

/// Longest time for the kernel to find an address or a route, in milliseconds.
const RESOLVE: i32 = 5000;
/// A device repeats what nobody confirms so often before it takes the other side for lost. Not seven times, which soft-RoCE takes
/// for ever.
const REPEATS: u8 = 6;
/// It does so after 4.096 us × 2^17, half a second; hardware may take up to four times as long. The engine's detection does not
/// wait for it.
const PATIENCE: u8 = 17;
/// The same for what the other side has no request for, which the accounts exclude.
const NOT_READY: u8 = 6;
/// Connections that may wait to be looked at; the others are refused by the kernel.
const BACKLOG: i32 = 8;

/// Why queue pairs do not find each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("The link was ended on this side")]
    Aborted,
    #[error("The other host closed the channel; its log says why")]
    Left,
    #[error("The RDMA connection was not there in time")]
    Late,
    #[error(
        "{0} belongs to no RDMA device of this host; `rdma link` shows the devices. `listen` and `peer` must name addresses of \
         them"
    )]
    NoDevice(IpAddr),
    #[error("Could not {step} {address}")]
    Step { step: &'static str, address: SocketAddr, source: io::Error },
    #[error("Could not {step} {address}: the connection manager says {said} ({status})")]
    Event { step: &'static str, address: SocketAddr, said: &'static str, status: i32 },
    #[error("The queue pair for {address} could not be made")]
    Make { address: SocketAddr, source: MakeError },
    #[error("This host has no RDMA device; `rdma link` shows them")]
    NoDevices,
    #[error("The kernel's RDMA connection manager cannot be used; load it with: modprobe rdma_ucm")]
    Manager(#[source] io::Error),
    #[error("Could not wait for the other host")]
    Wait(#[source] io::Error),
}

/// Why the connection manager does not even say what happens.
fn unmanaged(error: io::Error) -> ConnectError {
    match Errno::from_io_error(&error) {
        Some(Errno::NODEV) => ConnectError::NoDevices,
        _ => ConnectError::Manager(error),
    }
}

/// What ends a wait.
pub(crate) struct Watch<'a> {
    /// Readable once the link has ended.
    pub(crate) ended: BorrowedFd<'a>,
    /// The channel's TLS connection.
    pub(crate) tether: BorrowedFd<'a>,
    pub(crate) deadline: Instant,
}

impl Watch<'_> {
    /// Waits for something on `fd`.
    fn wait(&self, fd: impl AsFd) -> Result<(), ConnectError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectError::Late);
            }
            let left = left + Duration::from_millis(1);
            let limit = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            let mut fds = [
                PollFd::from_borrowed_fd(self.ended, PollFlags::IN),
                PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN),
                // Not IN: the primary may have gone on to the next message.
                PollFd::from_borrowed_fd(self.tether, PollFlags::RDHUP),
            ];
            match poll(&mut fds, Some(&limit)) {
                Ok(_) if !fds[0].revents().is_empty() => return Err(ConnectError::Aborted),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(()),
                Ok(_) if !fds[2].revents().is_empty() => return Err(ConnectError::Left),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ConnectError::Wait(error.into())),
            }
        }
    }

    fn next(&self, events: &Events) -> Result<Event, ConnectError> {
        loop {
            match events.next().map_err(ConnectError::Wait)? {
                Some(event) => return Ok(event),
                None => self.wait(events)?,
            }
        }
    }
}

/// Where a connection leads, for the errors.
#[derive(Clone, Copy)]
struct Way {
    libraries: &'static Libraries,
    address: SocketAddr,
}

impl Way {
    fn step(&self, step: &'static str, result: i32) -> Result<(), ConnectError> {
        let address = self.address;
        done(result).map_err(|source| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NODEV) => ConnectError::NoDevice(address.ip()),
            _ => ConnectError::Step { step, address, source },
        })
    }

    /// Waits for the event that a step ends with.
    fn expect(
        &self,
        watch: &Watch<'_>,
        events: &Events,
        kind: u32,
        step: &'static str,
    ) -> Result<(), ConnectError> {
        let event = watch.next(events)?;
        if event.kind == kind && event.status == 0 {
            return Ok(());
        }
        let said = match event.kind {
            event::REJECTED => "that the other host refuses it",
            kind => Events::name(self.libraries, kind),
        };
        Err(ConnectError::Event { step, address: self.address, said, status: event.status })
    }

    fn made(&self, made: Result<Endpoint, MakeError>) -> Result<Endpoint, ConnectError> {
        made.map_err(|source| match source {
            MakeError::NoDevice => ConnectError::NoDevice(self.address.ip()),
            source => ConnectError::Make { address: self.address, source },
        })
    }
}

/// What both sides of a connection ask for. The ticket is copied by who takes this.
fn parameters(ticket: &[u8]) -> ConnParam {
    ConnParam {
        private_data: if ticket.is_empty() { ptr::null() } else { ticket.as_ptr().cast() },
        private_data_len: ticket.len() as u8,
        responder_resources: 0,
        initiator_depth: 0,
        flow_control: 1,
        retry_count: REPEATS,
        rnr_retry_count: NOT_READY,
        srq: 0,
        qp_num: 0,
    }
}

/// Primary: connects a new queue pair to the standby's listener at `to`.
pub(crate) fn dial(
    libraries: &'static Libraries,
    watch: &Watch<'_>,
    to: SocketAddr,
    ticket: &[u8; TICKET],
    purpose: Use,
    len: usize,
) -> Result<Endpoint, ConnectError> {
    const CONNECT: &str = "connect to";
    let (way, manager) = (Way { libraries, address: to }, &libraries.manager);
    let events = Events::new(libraries).map_err(unmanaged)?;
    let id = Id::new(libraries, &events).map_err(|source| ConnectError::Step {
        step: CONNECT,
        address: to,
        source,
    })?;
    let address = SockAddr::from(to);
    let (raw, address) = (id.raw.as_ptr(), address.as_ptr().cast_mut().cast());
    const FIND: &str = "find an RDMA device that leads to";
    // SAFETY: the address is copied.
    way.step(FIND, unsafe { (manager.rdma_resolve_addr)(raw, ptr::null_mut(), address, RESOLVE) })?;
    way.expect(watch, &events, event::ADDR_RESOLVED, FIND)?;
    const ROUTE: &str = "find a route to";
    id.repeat_after(PATIENCE).map_err(|source| ConnectError::Step { step: ROUTE, address: to, source })?;
    // SAFETY: the connection is there.
    way.step(ROUTE, unsafe { (manager.rdma_resolve_route)(raw, RESOLVE) })?;
    way.expect(watch, &events, event::ROUTE_RESOLVED, ROUTE)?;
    let mut endpoint = way.made(Endpoint::new(libraries, events, id, purpose, len))?;
    let mut parameters = parameters(ticket);
    // SAFETY: parameters and ticket are copied.
    way.step(CONNECT, unsafe { (manager.rdma_connect)(raw, &mut parameters) })?;
    way.expect(watch, &endpoint.events, event::ESTABLISHED, CONNECT)?;
    endpoint.connected();
    Ok(endpoint)
}

/// The standby's side of one channel, until its queue pairs are there.
pub(crate) struct Door {
    libraries: &'static Libraries,
    // In the order in which they may go.
    _id: Id,
    events: Events,
    address: SocketAddr,
}

impl Door {
    /// Listens at a port of its own.
    pub(crate) fn open(libraries: &'static Libraries, at: IpAddr) -> Result<Door, ConnectError> {
        const LISTEN: &str = "listen at";
        let way = Way { libraries, address: (at, 0).into() };
        let (manager, mut address) = (&libraries.manager, way.address);
        let events = Events::new(libraries).map_err(unmanaged)?;
        let id = Id::new(libraries, &events).map_err(|source| ConnectError::Step {
            step: LISTEN,
            address,
            source,
        })?;
        let here = SockAddr::from(address);
        // SAFETY: the address is copied.
        way.step(LISTEN, unsafe {
            (manager.rdma_bind_addr)(id.raw.as_ptr(), here.as_ptr().cast_mut().cast())
        })?;
        if id.device().is_none() {
            return Err(ConnectError::NoDevice(at));
        }
        // SAFETY: the connection is there.
        way.step(LISTEN, unsafe { (manager.rdma_listen)(id.raw.as_ptr(), BACKLOG) })?;
        // SAFETY: as above.
        address.set_port(u16::from_be(unsafe { (manager.rdma_get_src_port)(id.raw.as_ptr()) }));
        Ok(Door { libraries, _id: id, events, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the queue pair that has this ticket, and gives it one of this side.
    pub(crate) fn admit(
        &self,
        watch: &Watch<'_>,
        ticket: &[u8; TICKET],
        purpose: Use,
        len: usize,
    ) -> Result<Endpoint, ConnectError> {
        const ACCEPT: &str = "accept at";
        let (way, manager) =
            (Way { libraries: self.libraries, address: self.address }, &self.libraries.manager);
        let failed = |source| ConnectError::Step { step: ACCEPT, address: self.address, source };
        let id = self.wait_for(watch, ticket)?;
        let events = Events::new(self.libraries).map_err(failed)?;
        id.move_to(&events).map_err(failed)?;
        id.repeat_after(PATIENCE).map_err(failed)?;
        let mut endpoint = way.made(Endpoint::new(self.libraries, events, id, purpose, len))?;
        let mut parameters = parameters(&[]);
        // SAFETY: the parameters are copied.
        way.step(ACCEPT, unsafe { (manager.rdma_accept)(endpoint.id.raw.as_ptr(), &mut parameters) })?;
        way.expect(watch, &endpoint.events, event::ESTABLISHED, ACCEPT)?;
        endpoint.connected();
        Ok(endpoint)
    }

    fn wait_for(&self, watch: &Watch<'_>, ticket: &[u8; TICKET]) -> Result<Id, ConnectError> {
        loop {
            let event = watch.next(&self.events)?;
            if event.kind != event::CONNECT_REQUEST {
                // About somebody who was refused.
                continue;
            }
            // SAFETY: a request, seen once.
            let Some(id) = (unsafe { Id::asked_for(self.libraries, &event) }) else { continue };
            if is_ticket(&event.shown, ticket) {
                return Ok(id);
            }
            tracing::warn!(at = %self.address, "An RDMA connection was refused: it does not belong to an authenticated host");
            // SAFETY: the request is there. Dropping it refuses it, too.
            let _ = unsafe { (self.libraries.manager.rdma_reject)(id.raw.as_ptr(), ptr::null(), 0) };
        }
    }
}

#[cfg(test)]
#[path = "../testing/fabric.rs"]
mod fabric;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Direction, ticket};
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn a_queue_pair_without_the_ticket_is_refused_and_the_right_one_still_comes() {
        fabric::unpacked();
        aventine_lab::inside(|| {
            fabric::start();
            let libraries = Libraries::get().unwrap();
            let (never, tether) = (eventfd(0, EventfdFlags::CLOEXEC).unwrap(), UnixStream::pair().unwrap());
            let deadline = Instant::now() + Duration::from_secs(120);
            let watch = || Watch { ended: never.as_fd(), tether: tether.0.as_fd(), deadline };
            let door = Door::open(libraries, [10, 9, 0, 10].into()).unwrap();
            let (ours, theirs) =
                (ticket(&[7; 32], Direction::FromPrimary), ticket(&[7; 32], Direction::FromStandby));
            let (at, watch) = (door.address(), &watch);
            thread::scope(|scope| {
                let admitted = scope.spawn(move || door.admit(&watch(), &ours, Use::Receive, 65_536));
                for wrong in [[0; TICKET], theirs] {
                    let refused = dial(libraries, &watch(), at, &wrong, Use::Send, 65_536);
                    let refused = refused.err().expect("a stranger was let in").to_string();
                    assert!(refused.contains("the other host refuses it"), "{refused}");
                }
                assert!(dial(libraries, &watch(), at, &ours, Use::Send, 65_536).is_ok());
                assert!(admitted.join().unwrap().is_ok());
            });
        });
    }
}
