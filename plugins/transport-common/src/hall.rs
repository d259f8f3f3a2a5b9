//! Where the door leaves connections and the standby finds them.

use crate::channel::{CONTROL, tune};
use crate::conn::Conn;
use crate::state::LinkState;
use crate::traffic::Traffic;
use crate::wire::{Answer, Greeting, LinkId, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Links that may wait to be accepted.
const MAX_WAITING: usize = 16;

/// A link nobody has accepted yet.
struct Waiting {
    link: Arc<LinkState>,
    /// A second handle to its first connection, to see whether the primary is still there.
    control: TcpStream,
    from: SocketAddr,
}

impl Waiting {
    /// Whether the primary has not hung up.
    fn is_alive(&self) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.control, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => !fds[0].revents().intersects(gone),
            Err(_) => true,
        }
    }
}

/// Shared by the door's thread, the listener and (weakly) the links.
pub(crate) struct Hall {
    /// Of the links to come.
    traffic: Traffic,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    links: HashMap<LinkId, Weak<LinkState>>,
    waiting: VecDeque<Waiting>,
    ended: Option<io::Error>,
}

impl Hall {
    pub(crate) fn new(traffic: Traffic) -> Hall {
        Hall { traffic, inner: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a greeting and, if it is welcome, gives the connection to its link. Gives back a refused one, with
    /// the reason. An error concerns this connection alone.
    pub(crate) fn admit(
        &self,
        greeting: Greeting,
        mut conn: Conn,
        from: SocketAddr,
    ) -> io::Result<Option<(Conn, Refusal)>> {
        let mut inner = self.lock();
        let is_new = greeting.channel == CONTROL;
        let link = if is_new {
            inner.new_link(&greeting.link, &self.traffic)?
        } else {
            inner.known_link(&greeting.link)
        };
        let expected = link.and_then(|link| link.expects(&greeting).map(|streams| (link, streams)));
        let (link, streams) = match expected {
            Ok(expected) => expected,
            Err(refusal) => return Ok(Some((conn, refusal))),
        };
        // First the answer: once the connection is handed over, the standby may write to it.
        conn.write_all(&Answer::Welcome(streams).encode())?;
        conn.flush()?;
        tune(&mut conn, &greeting.channel, &link)?;
        if is_new {
            let control = conn.stream().try_clone()?;
            inner.links.insert(greeting.link, Arc::downgrade(&link));
            link.leave(&greeting, streams, conn);
            inner.waiting.push_back(Waiting { link, control, from });
            self.changed.notify_all();
        } else {
            link.leave(&greeting, streams, conn);
        }
        Ok(None)
    }

    /// The next link that a primary still holds, with the primary's address; `None` when none came before `limit`.
    pub(crate) fn next(&self, limit: Duration) -> Result<Option<(Arc<LinkState>, SocketAddr)>, io::Error> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            while let Some(waiting) = inner.waiting.pop_front() {
                if waiting.is_alive() {
                    return Ok(Some((waiting.link, waiting.from)));
                }
            }
            if let Some(error) = &inner.ended {
                return Err(io::Error::new(error.kind(), error.to_string()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The door is shut for good.
    pub(crate) fn end(&self, error: io::Error) {
        self.lock().ended = Some(error);
        self.changed.notify_all();
    }
}

impl Inner {
    fn new_link(&mut self, id: &LinkId, traffic: &Traffic) -> io::Result<Result<Arc<LinkState>, Refusal>> {
        self.links.retain(|_, link| link.strong_count() > 0);
        if self.links.contains_key(id) {
            return Ok(Err(Refusal::Taken));
        }
        self.waiting.retain(Waiting::is_alive);
        if self.waiting.len() >= MAX_WAITING {
            return Ok(Err(Refusal::Busy));
        }
        LinkState::new(traffic.clone()).map(Ok)
    }

    fn known_link(&self, id: &LinkId) -> Result<Arc<LinkState>, Refusal> {
        self.links.get(id).and_then(Weak::upgrade).ok_or(Refusal::UnknownLink)
    }
}
