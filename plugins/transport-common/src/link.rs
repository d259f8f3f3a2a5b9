//! A link of either side.

use crate::channel::{CONTROL, ChannelError, Rx, Tx};
use crate::config::{Address, AddressError, Settings};
use crate::conn::{Conn, Security};
use crate::dial::{DialError, Dialled, dial, resolve};
use crate::own::is_own;
use crate::state::LinkState;
use crate::traffic::Traffic;
use crate::wire::{Greeting, LinkId, is_name};
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, Link, LinkAbort, PluginError};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longest time for one attempt to connect: after it a new connection is tried instead of the kernel's ever rarer
/// repetitions of the first.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the primary could not connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("No standby answered at {peer} within {limit:?}; is `aventine standby` running there?")]
    NoAnswer { peer: String, limit: Duration, source: Option<DialError> },
    #[error(transparent)]
    Wrong(DialError),
    #[error("Could not begin to connect")]
    Start(#[source] io::Error),
}

impl From<ConnectError> for PluginError {
    fn from(error: ConnectError) -> PluginError {
        let code = match &error {
            ConnectError::NoAnswer { .. } => ErrorCode::TimedOut,
            ConnectError::Wrong(DialError::NotAventine { .. }) => ErrorCode::Corrupt,
            ConnectError::Wrong(DialError::Source(_)) => ErrorCode::Unavailable,
            ConnectError::Wrong(e) if e.is_refusal() => ErrorCode::Refused,
            ConnectError::Wrong(_) => ErrorCode::PeerLost,
            ConnectError::Start(_) => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}

/// Why a channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{name:?} is no name for a channel")]
    Name { name: String },
    #[error("The route {route:?} of channel {name} is no address")]
    Route { name: String, route: String, source: AddressError },
    #[error("Channel {name} could not be opened")]
    Dial { name: String, source: DialError },
    #[error("The primary did not open channel {name} within {limit:?}")]
    NeverCame { name: String, limit: Duration },
    #[error("Channel {name} could not be opened")]
    Ended { name: String, source: ChannelError },
}

impl From<OpenError> for PluginError {
    fn from(error: OpenError) -> PluginError {
        let code = match &error {
            OpenError::Name { .. } => ErrorCode::Internal,
            OpenError::Route { .. } => ErrorCode::Config,
            OpenError::NeverCame { .. } => ErrorCode::TimedOut,
            OpenError::Ended { .. } => ErrorCode::PeerLost,
            OpenError::Dial { source, .. } => match source {
                DialError::Slow { .. } | DialError::ResolveSlow { .. } => ErrorCode::TimedOut,
                DialError::Resolve { .. } | DialError::Source(_) | DialError::Family { .. } => {
                    ErrorCode::Unavailable
                }
                DialError::NotAventine { .. } => ErrorCode::Corrupt,
                e if e.is_refusal() => ErrorCode::Refused,
                DialError::Taken { .. } | DialError::BadName { .. } => ErrorCode::Internal,
                _ => ErrorCode::PeerLost,
            },
        };
        PluginError::new(code, error)
    }
}

/// One relation between two hosts.
pub struct TcpLink {
    state: Arc<LinkState>,
    peer: String,
    /// Primary: what its dials need.
    dialer: Option<Dialer>,
}

struct Dialer {
    id: LinkId,
    /// Where the standby answered; names are not resolved again, so that all channels reach the same host.
    standby: SocketAddr,
    /// Where this host listens.
    listen: Option<SocketAddr>,
    security: Security,
}

impl TcpLink {
    /// Primary: tries until the standby answers or `limit` has passed.
    pub(crate) fn connect(
        settings: &Settings,
        limit: Duration,
        security: &Security,
        traffic: &Traffic,
    ) -> Result<TcpLink, ConnectError> {
        let deadline = Instant::now() + limit;
        let mut id = LinkId::default();
        getrandom(&mut id, GetRandomFlags::empty()).map_err(|e| ConnectError::Start(e.into()))?;
        let state = LinkState::new(traffic.clone()).map_err(ConnectError::Start)?;
        let greeting = Greeting { link: id, channel: CONTROL.to_owned(), stream: 0, streams: 1 };
        let mut last = None;
        let Settings { listen, peers, .. } = settings;
        while Instant::now() < deadline {
            for peer in peers {
                // A name server that is down may take its time; only the connection is bounded by an attempt.
                let found = resolve(peer, deadline).map(|mut found| {
                    if peers.len() > 1 {
                        found.retain(|address| !is_own(*address, *listen));
                    }
                    found
                });
                let until = deadline.min(Instant::now() + ATTEMPT);
                match found.and_then(|found| dial(&found, &greeting, until, &state, security)) {
                    Ok(Dialled { conn, to: standby, streams }) => {
                        state.leave(&greeting, streams, conn);
                        let dialer = Dialer { id, standby, listen: *listen, security: security.clone() };
                        let peer = format!("{peer} ({standby})");
                        return Ok(TcpLink { state, peer, dialer: Some(dialer) });
                    }
                    Err(DialError::Own) => {}
                    Err(e) if e.is_passing() => last = Some(e),
                    Err(e) => return Err(ConnectError::Wrong(e)),
                }
            }
            thread::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
        }
        let peers = peers.iter().map(ToString::to_string).collect::<Vec<_>>();
        Err(ConnectError::NoAnswer { peer: peers.join(" or "), limit, source: last })
    }

    /// As [`Link::open`].
    pub fn open_channel(
        &self,
        name: &str,
        route: Option<&str>,
        limit: Duration,
    ) -> Result<(Tx, Rx), PluginError> {
        Ok(self.open_named(name, route, limit)?)
    }

    /// Whether this side is the primary.
    pub fn is_primary(&self) -> bool {
        self.dialer.is_some()
    }

    /// What its channels share.
    pub fn state(&self) -> &Arc<LinkState> {
        &self.state
    }

    /// Standby: the link of a primary that came from `from`.
    pub(crate) fn accepted(state: Arc<LinkState>, from: SocketAddr) -> TcpLink {
        // A listener at [::] shows addresses of IPv4 as if they were none.
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        TcpLink { state, peer: from.to_string(), dialer: None }
    }

    fn open_named(&self, name: &str, route: Option<&str>, limit: Duration) -> Result<(Tx, Rx), OpenError> {
        let deadline = Instant::now() + limit;
        if !is_name(name) {
            return Err(OpenError::Name { name: name.to_owned() });
        }
        let ended = |source| OpenError::Ended { name: name.to_owned(), source };
        let conns = match &self.dialer {
            Some(dialer) => match self.state.take(name) {
                Some(conns) => conns,
                None => self.dial(dialer, name, route, deadline)?,
            },
            None => match self.state.wait(name, deadline) {
                Some(conns) => conns,
                None if self.state.is_aborted() => return Err(ended(ChannelError::Aborted)),
                None => return Err(OpenError::NeverCame { name: name.to_owned(), limit }),
            },
        };
        self.state.adopt(name, conns).map_err(ended)
    }

    fn dial(
        &self,
        dialer: &Dialer,
        name: &str,
        route: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<Conn>, OpenError> {
        let failed = |source| OpenError::Dial { name: name.to_owned(), source };
        let addresses = match route {
            Some(route) => {
                let address: Address = route.parse().map_err(|source| OpenError::Route {
                    name: name.to_owned(),
                    route: route.to_owned(),
                    source,
                })?;
                let found = resolve(&address, deadline).map_err(failed)?;
                // The route names the host that was the standby when the file was written: it may be this one by now.
                let there = |a: SocketAddr| {
                    let listen = dialer.listen.map(|l| SocketAddr::new(l.ip(), a.port()));
                    if is_own(a, listen) { (dialer.standby.ip(), a.port()).into() } else { a }
                };
                if is_own(dialer.standby, dialer.listen) {
                    found
                } else {
                    found.into_iter().map(there).collect()
                }
            }
            None => vec![dialer.standby],
        };
        let dial = |addresses: &[SocketAddr], stream, streams| {
            let greeting = Greeting { link: dialer.id, channel: name.to_owned(), stream, streams };
            dial(addresses, &greeting, deadline, &self.state, &dialer.security).map_err(failed)
        };
        let Dialled { conn, to, streams } = dial(&addresses, 0, self.state.traffic.streams(name))?;
        let mut conns = vec![conn];
        for stream in 1..streams {
            conns.push(dial(&[to], stream, streams)?.conn);
        }
        Ok(conns)
    }
}

impl Link for TcpLink {
    fn open(
        &mut self,
        name: &str,
        route: Option<&str>,
        limit: Duration,
    ) -> Result<(Box<dyn ChannelTx>, Box<dyn ChannelRx>), PluginError> {
        let (tx, rx) = self.open_channel(name, route, limit)?;
        Ok((Box::new(tx), Box::new(rx)))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.state) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}
