//! Links: those of `tcp`, and on each channel's connection the handshake of [`crate::wire`].

use crate::channel::{Rx, Tether, Tx};
use crate::connect::{ConnectError, Door, Watch, dial};
use crate::endpoint::{Endpoint, Use};
use crate::lent::Pool;
use crate::library::Libraries;
use crate::ring::OFFERS;
use crate::wire::{Direction, HELLO, OFFER, Offer, ROOM, Room, Token, WireError, check_hello, hello, ticket};
use aventine_api::{Channel, ChannelRx, ChannelTx, ErrorCode, Link, LinkAbort, PluginError};
use aventine_transport_common::{self as common, CONTROL, TcpLink};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Length of a ring: what may be under way in one direction of a channel.
fn ring_len(channel: &str) -> usize {
    if channel == CONTROL { 64 << 10 } else { 4 << 20 }
}

/// Why a channel could not be opened, beyond what its connection fails with.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("The other host did not open channel {name} over RDMA within {limit:?}")]
    Late { name: String, limit: Duration, source: Option<PluginError> },
    #[error("The link was ended on this side")]
    Aborted,
    #[error("Channel {name} was not opened: the handshake broke off")]
    Broken { name: String, source: PluginError },
    #[error("Channel {name} was not opened: what the other host says is wrong")]
    Wrong { name: String, source: WireError },
    #[error("Channel {name} was not opened")]
    Connect { name: String, source: ConnectError },
    #[error("Channel {name} was not opened: the system has no random numbers or no addresses")]
    System { name: String, source: io::Error },
}

impl From<OpenError> for PluginError {
    fn from(error: OpenError) -> PluginError {
        let code = match &error {
            OpenError::Late { .. } => ErrorCode::TimedOut,
            OpenError::Aborted | OpenError::Broken { .. } => ErrorCode::PeerLost,
            OpenError::Wrong { source: WireError::NotRdma, .. } => ErrorCode::Corrupt,
            OpenError::Wrong { .. } => ErrorCode::Refused,
            OpenError::System { .. } => ErrorCode::Io,
            OpenError::Connect { source, .. } => match source {
                ConnectError::NoDevice(_)
                | ConnectError::NoDevices
                | ConnectError::Manager(_)
                | ConnectError::Make { .. } => ErrorCode::Unavailable,
                ConnectError::Step { .. } | ConnectError::Wait(_) => ErrorCode::Io,
                ConnectError::Late => ErrorCode::TimedOut,
                ConnectError::Aborted | ConnectError::Left | ConnectError::Event { .. } => {
                    ErrorCode::PeerLost
                }
            },
        };
        PluginError::new(code, error)
    }
}

/// One relation between two hosts.
pub(crate) struct RdmaLink {
    tcp: TcpLink,
    libraries: &'static Libraries,
}

impl RdmaLink {
    pub(crate) fn new(tcp: TcpLink, libraries: &'static Libraries) -> RdmaLink {
        RdmaLink { tcp, libraries }
    }
}

impl Link for RdmaLink {
    fn open(&mut self, name: &str, route: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        self.open_lending(name, route, limit, 0, 0)
    }

    fn open_lending(
        &mut self,
        name: &str,
        route: Option<&str>,
        limit: Duration,
        buffers: usize,
        bytes: usize,
    ) -> Result<Channel, PluginError> {
        let deadline = Instant::now() + limit;
        let (tx, rx) = self.tcp.open_channel(name, route, limit)?;
        let link = self.tcp.state();
        let mut opening = Opening {
            libraries: self.libraries,
            name,
            tx,
            rx,
            link,
            deadline,
            limit,
            len: ring_len(name),
            lends: (buffers, bytes),
        };
        let pairs = if self.tcp.is_primary() { opening.as_primary() } else { opening.as_standby() };
        let (sends, receives, theirs, pool) =
            pairs.map_err(|error| if link.is_aborted() { OpenError::Aborted } else { error })?;
        let Opening { tx, rx, .. } = opening;
        let tether = Arc::new(Tether { tx, _rx: rx, link: Arc::clone(link) });
        let tx: Box<dyn ChannelTx> = Box::new(Tx::new(sends, theirs, Arc::clone(&tether)));
        let rx: Box<dyn ChannelRx> = Box::new(Rx::new(receives, pool, tether));
        Ok((tx, rx))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        self.tcp.aborter()
    }

    fn peer(&self) -> String {
        self.tcp.peer()
    }
}

/// A channel that is not open yet.
struct Opening<'a> {
    libraries: &'static Libraries,
    name: &'a str,
    tx: common::Tx,
    rx: common::Rx,
    link: &'a common::LinkState,
    deadline: Instant,
    limit: Duration,
    /// Of its rings.
    len: usize,
    /// How many buffers, and of how many bytes, this side was asked to lend.
    lends: (usize, usize),
}

/// The queue pair that this side sends on, the one that it receives on, where it may write, and what it lends.
type Pairs = (Endpoint, Endpoint, Room, Option<Arc<Pool>>);

impl Opening<'_> {
    fn as_primary(&mut self) -> Result<Pairs, OpenError> {
        self.say(&hello())?;
        let offer = Offer::decode(&self.hear::<OFFER>()?).map_err(|e| self.wrong(e))?;
        let connect = |direction, purpose| {
            let ticket = ticket(&offer.token, direction);
            let made = dial(self.libraries, &self.watch(), offer.address, &ticket, purpose, self.len);
            made.map_err(|e| self.unconnected(e))
        };
        let sends = connect(Direction::FromPrimary, Use::Send)?;
        let receives = connect(Direction::FromStandby, Use::Receive)?;
        self.exchange(sends, receives)
    }

    fn as_standby(&mut self) -> Result<Pairs, OpenError> {
        check_hello(&self.hear::<HELLO>()?).map_err(|e| self.wrong(e))?;
        let system = |source| OpenError::System { name: self.name.to_owned(), source };
        let here = self.tx.stream().local_addr().map_err(system)?.ip().to_canonical();
        let mut token = Token::default();
        getrandom(&mut token, GetRandomFlags::empty()).map_err(|e: Errno| system(e.into()))?;
        let door = Door::open(self.libraries, here).map_err(|e| self.unconnected(e))?;
        self.say(&Offer { address: door.address(), token }.encode())?;
        let admit = |direction, purpose| {
            let admitted = door.admit(&self.watch(), &ticket(&token, direction), purpose, self.len);
            admitted.map_err(|e| self.unconnected(e))
        };
        let receives = admit(Direction::FromPrimary, Use::Receive)?;
        let sends = admit(Direction::FromStandby, Use::Send)?;
        self.exchange(sends, receives)
    }

    /// Each side's memory for the other's.
    fn exchange(&mut self, sends: Endpoint, receives: Endpoint) -> Result<Pairs, OpenError> {
        let pool = Pool::new(&receives, self.lends.0, self.lends.1, OFFERS);
        let buffers = pool.as_ref().map(|pool| pool.buffers()).unwrap_or_default();
        self.say(&Room { ring: receives.ring(), buffers }.encode())?;
        let theirs = Room::decode(&self.hear::<ROOM>()?, self.len).map_err(|e| self.wrong(e))?;
        Ok((sends, receives, theirs, pool))
    }

    fn watch(&self) -> Watch<'_> {
        Watch { ended: self.link.wake(), tether: self.tx.stream().as_fd(), deadline: self.deadline }
    }

    fn say(&mut self, bytes: &[u8]) -> Result<(), OpenError> {
        self.tx.send(&[bytes]).map_err(|source| OpenError::Broken { name: self.name.to_owned(), source })
    }

    fn hear<const N: usize>(&mut self) -> Result<[u8; N], OpenError> {
        let left = self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let system = |source| OpenError::System { name: self.name.to_owned(), source };
        self.tx.stream().set_read_timeout(Some(left)).map_err(system)?;
        let mut bytes = [0; N];
        match self.rx.recv(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(source) if Instant::now() >= self.deadline => Err(self.late(Some(source))),
            Err(source) => Err(OpenError::Broken { name: self.name.to_owned(), source }),
        }
    }

    fn late(&self, source: Option<PluginError>) -> OpenError {
        OpenError::Late { name: self.name.to_owned(), limit: self.limit, source }
    }

    fn wrong(&self, source: WireError) -> OpenError {
        OpenError::Wrong { name: self.name.to_owned(), source }
    }

    fn unconnected(&self, source: ConnectError) -> OpenError {
        match source {
            ConnectError::Late => self.late(None),
            source => OpenError::Connect { name: self.name.to_owned(), source },
        }
    }
}
