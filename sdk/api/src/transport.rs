use crate::PluginError;
use std::sync::Arc;
use std::time::Duration;

/// Connects the two hosts. One link carries one protected guest: a set of named, ordered byte channels.
///
/// Names in use: `control` (heartbeats, acknowledgements, verdicts), `pages`, `disk:ID`, `net:ID`. A bulk channel never delays
/// another channel's bytes beyond what the wire itself does.
pub trait Transport: Send {
    /// Primary: connects to the configured peer; tries until it answers or `limit` has passed (`TimedOut`).
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError>;

    /// Standby: listens on the configured address and on the port of each of `routes` (`host:port`, as given by
    /// [`crate::Disk::route`]).
    fn listen(&mut self, routes: &[String]) -> Result<Box<dyn Listener>, PluginError>;
}

/// The standby's listening end. It outlives its links; once both are dropped, its address is free.
pub trait Listener: Send {
    /// Waits at most `limit` for a primary; `None` when none came. Strangers and half-open connections are dropped
    /// without disturbing it.
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError>;
}

/// Both ends of a channel, as one host has them.
pub type Channel = (Box<dyn ChannelTx>, Box<dyn ChannelRx>);

/// One relation between a primary and a standby.
pub trait Link: Send {
    /// Opens the channel `name`; both sides open each name once, in the same order. `route` is used by the primary
    /// for a channel with an address of its own. Waits at most `limit` (`TimedOut`); what comes on other channels meanwhile is
    /// not lost.
    fn open(&mut self, name: &str, route: Option<&str>, limit: Duration) -> Result<Channel, PluginError>;

    /// As [`Self::open`]. Of what comes on the channel, what [`ChannelRx::recv_lent`] asks for may lie in memory that the
    /// transport lends: at most `buffers` buffers of `bytes` bytes each. It takes less, or none, where it has no such memory or
    /// must not have so much. The other side need not ask for the same.
    fn open_lending(
        &mut self,
        name: &str,
        route: Option<&str>,
        limit: Duration,
        _buffers: usize,
        _bytes: usize,
    ) -> Result<Channel, PluginError> {
        self.open(name, route, limit)
    }

    /// A handle that ends the link from any thread.
    fn aborter(&self) -> Arc<dyn LinkAbort>;

    /// The other side, for a person.
    fn peer(&self) -> String;

    /// Whether somebody is there. With `false` what is sent is only recorded, nothing is ever received (`recv` waits until the
    /// link is ended), and the guest is not protected: the engine takes an epoch for committed once its bytes are sent.
    fn answers(&self) -> bool {
        true
    }
}

/// Ends a link.
pub trait LinkAbort: Send + Sync {
    /// Every call on the link's channels that waits now or is made later returns `PeerLost`, and so does the link's `open`; only a
    /// [`ChannelTx::settle`] that has nothing to wait for need not.
    /// What had arrived is not handed out any more. The other side's calls become `PeerLost`. Idempotent.
    fn abort(&self);
}

/// Memory that belongs to a transport, which its device reads or writes by itself. It is the borrower's alone until it is dropped, but
/// for what [`ChannelTx::settle`] is asked about, and may outlive channel and link.
pub trait LentMemory: Send {
    /// All of it. The same place each time.
    fn bytes(&self) -> &[u8];

    /// The same, to be written to.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// The sending end of a channel. Bytes are buffered nowhere but in the kernel or the adapter.
pub trait ChannelTx: Send {
    /// Sends all of `parts`, in order. Blocks while the other side or the link is slower. That it returned says
    /// nothing about the other side having received anything. `PeerLost` once it is known that nobody will: the other side has
    /// ended or dropped its end, or has died.
    ///
    /// What one call sends after its first part can be taken whole by [`ChannelRx::recv_lent`]: a frame's header is such a first
    /// part, and its payload the others.
    ///
    /// All of `parts` is the caller's again when this returns, except what lies in memory that [`Self::memory`] has answered:
    /// that may be read until [`Self::settle`] says otherwise, and what is written there before may go instead.
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError>;

    /// Memory of `bytes` bytes, all zero, that `send` need not copy from. `None`: the transport has none. It may be dropped at any
    /// time: the transport keeps it for as long as its device may read there.
    fn memory(&mut self, _bytes: usize) -> Option<Box<dyn LentMemory>> {
        None
    }

    /// Waits until nothing reads what any `send` but the last `sends` has taken from [`Self::memory`]: it may be written to again.
    /// That says nothing about the other side having received anything.
    ///
    /// Who sends calls it, with the guest paused or running; `0` leaves none out. Blocks while the other side or the link is slower,
    /// and fails as `send` does, if there is something to wait for: where there is not, a channel that has ended may answer `Ok`.
    /// Once a call of this channel has failed, or the channel is dropped, nothing that it sent is read any more. Idempotent.
    fn settle(&mut self, _sends: usize) -> Result<(), PluginError> {
        Ok(())
    }
}

/// The receiving end of a channel.
pub trait ChannelRx: Send {
    /// Waits until `buf` is full. `PeerLost` when the channel ends before: the other side has ended or dropped its end, or has
    /// died.
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError>;

    /// Waits for what comes next. If it is `len` bytes that the transport has placed in memory of its own, takes them and
    /// answers that memory, of `len` bytes; dropping it gives it back. `None`: nothing was taken, [`Self::recv`] has it.
    /// `PeerLost` as there.
    fn recv_lent(&mut self, _len: usize) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
        Ok(None)
    }
}
