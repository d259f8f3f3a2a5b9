//! The facades of a transport and of what comes out of it.

use super::answer::{Answer, native};
use super::edge::{Exported, Reporter};
use super::host::nanos;
use super::records::{borrowed, lent};
use abi_stable::std_types::{RArc, RBox, ROption, RSlice, RSliceMut, RStr, RString, RVec};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{
    Channel, ChannelRx, ChannelTx, Host, LentMemory, Link, LinkAbort, Listener, PluginError, Transport,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// [`Transport`]
#[sabi_trait]
pub trait TransportV1: Send {
    fn connect(&mut self, limit: u64) -> Answer<LinkBox>;
    fn listen(&mut self, routes: RVec<RString>) -> Answer<ListenerBox>;
}

/// [`Listener`]
#[sabi_trait]
pub trait ListenerV1: Send {
    fn accept(&mut self, limit: u64) -> Answer<ROption<LinkBox>>;
}

/// [`Link`]
#[sabi_trait]
pub trait LinkV1: Send {
    fn open(&mut self, name: RStr<'_>, route: ROption<RStr<'_>>, limit: u64) -> Answer<ChannelV1>;
    fn open_lending(
        &mut self,
        name: RStr<'_>,
        route: ROption<RStr<'_>>,
        limit: u64,
        buffers: u64,
        bytes: u64,
    ) -> Answer<ChannelV1>;
    fn aborter(&self) -> Answer<AbortArc>;
    fn peer(&self) -> Answer<RString>;
    fn answers(&self) -> Answer<bool>;
}

/// [`LinkAbort`]
#[sabi_trait]
pub trait AbortV1: Send + Sync {
    fn abort(&self) -> Answer<()>;
}

/// [`ChannelTx`]
#[sabi_trait]
pub trait ChannelTxV1: Send {
    fn send(&mut self, parts: RSlice<'_, RSlice<'_, u8>>) -> Answer<()>;
    fn memory(&mut self, bytes: u64) -> Answer<ROption<MemoryBox>>;
    fn settle(&mut self, sends: u64) -> Answer<()>;
}

/// [`ChannelRx`]
#[sabi_trait]
pub trait ChannelRxV1: Send {
    fn recv(&mut self, buf: RSliceMut<'_, u8>) -> Answer<()>;
    fn recv_lent(&mut self, len: u64) -> Answer<ROption<MemoryBox>>;
}

/// [`LentMemory`]
#[sabi_trait]
pub trait MemoryV1: Send {
    /// Always the same place, until the object is dropped; nobody else uses it until then.
    fn bytes(&mut self) -> Answer<RSliceMut<'_, u8>>;
}

/// [`Channel`]
#[derive(StableAbi)]
#[repr(C)]
pub struct ChannelV1 {
    pub tx: ChannelTxV1_TO<'static, RBox<()>>,
    pub rx: ChannelRxV1_TO<'static, RBox<()>>,
}

pub(super) type TransportBox = TransportV1_TO<'static, RBox<()>>;
type ListenerBox = ListenerV1_TO<'static, RBox<()>>;
type LinkBox = LinkV1_TO<'static, RBox<()>>;
type AbortArc = AbortV1_TO<'static, RArc<()>>;
type MemoryBox = MemoryV1_TO<'static, RBox<()>>;

impl TransportV1 for Exported<Box<dyn Transport>> {
    fn connect(&mut self, limit: u64) -> Answer<LinkBox> {
        let limit = Duration::from_nanos(limit);
        let link = self.call(|t| t.connect(limit));
        link.map(|l| LinkV1_TO::from_value(self.part(l), sabi_trait::TD_Opaque))
    }

    fn listen(&mut self, routes: RVec<RString>) -> Answer<ListenerBox> {
        let routes: Vec<String> = routes.into_iter().map(RString::into_string).collect();
        let listener = self.call(|t| t.listen(&routes));
        listener.map(|l| ListenerV1_TO::from_value(self.part(l), sabi_trait::TD_Opaque))
    }
}

impl ListenerV1 for Exported<Box<dyn Listener>> {
    fn accept(&mut self, limit: u64) -> Answer<ROption<LinkBox>> {
        let limit = Duration::from_nanos(limit);
        let link = self.call(|l| l.accept(limit));
        link.map(|l| l.map(|l| LinkV1_TO::from_value(self.part(l), sabi_trait::TD_Opaque)).into())
    }
}

impl LinkV1 for Exported<Box<dyn Link>> {
    fn open(&mut self, name: RStr<'_>, route: ROption<RStr<'_>>, limit: u64) -> Answer<ChannelV1> {
        let (route, limit) = (route.into_option().map(|r| r.as_str()), Duration::from_nanos(limit));
        let channel = self.call(|l| l.open(name.as_str(), route, limit));
        channel.map(|c| export_channel(self, c))
    }

    fn open_lending(
        &mut self,
        name: RStr<'_>,
        route: ROption<RStr<'_>>,
        limit: u64,
        buffers: u64,
        bytes: u64,
    ) -> Answer<ChannelV1> {
        let (route, limit) = (route.into_option().map(|r| r.as_str()), Duration::from_nanos(limit));
        let (buffers, bytes) = (buffers as usize, bytes as usize);
        let channel = self.call(|l| l.open_lending(name.as_str(), route, limit, buffers, bytes));
        channel.map(|c| export_channel(self, c))
    }

    fn aborter(&self) -> Answer<AbortArc> {
        self.ask(|l| AbortV1_TO::from_ptr(RArc::new(Exported::new(l.aborter())), sabi_trait::TD_Opaque))
    }

    fn peer(&self) -> Answer<RString> {
        self.ask(|l| l.peer().into())
    }

    fn answers(&self) -> Answer<bool> {
        self.ask(|l| l.answers())
    }
}

fn export_channel(link: &Exported<Box<dyn Link>>, (tx, rx): Channel) -> ChannelV1 {
    ChannelV1 {
        tx: ChannelTxV1_TO::from_value(link.part(tx), sabi_trait::TD_Opaque),
        rx: ChannelRxV1_TO::from_value(link.part(rx), sabi_trait::TD_Opaque),
    }
}

/// Stays callable when the rest of the plugin is dead: what waits on the link must be let go.
impl AbortV1 for Exported<Arc<dyn LinkAbort>> {
    fn abort(&self) -> Answer<()> {
        self.ask(|a| a.abort())
    }
}

impl ChannelTxV1 for Exported<Box<dyn ChannelTx>> {
    fn send(&mut self, parts: RSlice<'_, RSlice<'_, u8>>) -> Answer<()> {
        self.call(|tx| borrowed(parts, |parts| tx.send(parts)))
    }

    fn memory(&mut self, bytes: u64) -> Answer<ROption<MemoryBox>> {
        let memory = self.call(|tx| Ok(tx.memory(bytes as usize)));
        memory.map(|m| m.map(|m| MemoryV1_TO::from_value(self.part(m), sabi_trait::TD_Opaque)).into())
    }

    fn settle(&mut self, sends: u64) -> Answer<()> {
        self.call(|tx| tx.settle(sends as usize))
    }
}

impl ChannelRxV1 for Exported<Box<dyn ChannelRx>> {
    fn recv(&mut self, mut buf: RSliceMut<'_, u8>) -> Answer<()> {
        self.call(|rx| rx.recv(buf.as_mut_slice()))
    }

    fn recv_lent(&mut self, len: u64) -> Answer<ROption<MemoryBox>> {
        let memory = self.call(|rx| rx.recv_lent(len as usize));
        memory.map(|m| m.map(|m| MemoryV1_TO::from_value(self.part(m), sabi_trait::TD_Opaque)).into())
    }
}

impl MemoryV1 for Exported<Box<dyn LentMemory>> {
    fn bytes(&mut self) -> Answer<RSliceMut<'_, u8>> {
        self.call(|m| Ok(RSliceMut::from_mut_slice(m.bytes_mut())))
    }
}

pub(super) struct ImportedTransport {
    object: TransportBox,
    host: Arc<dyn Host>,
}

impl ImportedTransport {
    pub(super) fn new(object: TransportBox, host: &Arc<dyn Host>) -> ImportedTransport {
        ImportedTransport { object, host: Arc::clone(host) }
    }
}

impl Transport for ImportedTransport {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        import_link(native(self.object.connect(nanos(limit)))?, &self.host)
    }

    fn listen(&mut self, routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        let object = native(self.object.listen(routes.iter().map(|r| r.as_str().into()).collect()))?;
        Ok(Box::new(ImportedListener { object, host: Arc::clone(&self.host) }))
    }
}

struct ImportedListener {
    object: ListenerBox,
    host: Arc<dyn Host>,
}

impl Listener for ImportedListener {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let link = native(self.object.accept(nanos(limit)))?.into_option();
        link.map(|link| import_link(link, &self.host)).transpose()
    }
}

struct ImportedLink {
    object: LinkBox,
    aborter: Arc<ImportedAbort>,
    peer: String,
    answers: bool,
}

fn import_link(object: LinkBox, host: &Arc<dyn Host>) -> Result<Box<dyn Link>, PluginError> {
    let aborter = ImportedAbort { object: native(object.aborter())?, reporter: Reporter::new(host) };
    let peer = native(object.peer())?.into_string();
    let answers = native(object.answers())?;
    Ok(Box::new(ImportedLink { object, aborter: Arc::new(aborter), peer, answers }))
}

impl Link for ImportedLink {
    fn open(&mut self, name: &str, route: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let route = route.map(RStr::from).into();
        let channel = native(self.object.open(name.into(), route, nanos(limit)))?;
        Ok(import_channel(channel))
    }

    fn open_lending(
        &mut self,
        name: &str,
        route: Option<&str>,
        limit: Duration,
        buffers: usize,
        bytes: usize,
    ) -> Result<Channel, PluginError> {
        let (route, limit) = (route.map(RStr::from).into(), nanos(limit));
        let channel = self.object.open_lending(name.into(), route, limit, buffers as u64, bytes as u64);
        native(channel).map(import_channel)
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.aborter) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn answers(&self) -> bool {
        self.answers
    }
}

fn import_channel(channel: ChannelV1) -> Channel {
    (Box::new(ImportedTx(channel.tx)), Box::new(ImportedRx(channel.rx)))
}

struct ImportedAbort {
    object: AbortArc,
    reporter: Reporter,
}

impl LinkAbort for ImportedAbort {
    fn abort(&self) {
        self.reporter.or(self.object.abort(), ());
    }
}

struct ImportedTx(ChannelTxV1_TO<'static, RBox<()>>);

impl ChannelTx for ImportedTx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        native(lent(parts, |parts| self.0.send(parts)))
    }

    fn memory(&mut self, bytes: usize) -> Option<Box<dyn LentMemory>> {
        // A plugin that has panicked has none; its next `send` says so.
        import_memory(self.0.memory(bytes as u64)).ok().flatten()
    }

    fn settle(&mut self, sends: usize) -> Result<(), PluginError> {
        native(self.0.settle(sends as u64))
    }
}

struct ImportedRx(ChannelRxV1_TO<'static, RBox<()>>);

impl ChannelRx for ImportedRx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        native(self.0.recv(RSliceMut::from_mut_slice(buf)))
    }

    fn recv_lent(&mut self, len: usize) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
        import_memory(self.0.recv_lent(len as u64))
    }
}

/// Where the plugin's memory is: asked once, because its place stays.
struct ImportedMemory {
    _object: MemoryBox,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the object's, which may go from thread to thread, and nobody else's.
unsafe impl Send for ImportedMemory {}

fn import_memory(answer: Answer<ROption<MemoryBox>>) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
    let Some(mut object) = native(answer)?.into_option() else { return Ok(None) };
    let bytes = native(object.bytes())?.into_mut_slice();
    let (at, len) = (NonNull::from(&mut *bytes).cast(), bytes.len());
    Ok(Some(Box::new(ImportedMemory { _object: object, at, len })))
}

impl LentMemory for ImportedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the interface says that they are there for as long as the object, and this one's alone.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}
