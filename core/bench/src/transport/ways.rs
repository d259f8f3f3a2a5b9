//! The ways that pages can take: a plugin's channels, bare TCP connections, and TCP with rustls.

use super::meters::Meters;
use super::{BenchError, Keys, Setup};
use aventine_api::{
    ChannelRx, ChannelTx, Context, ErrorCode, Factory, Host, Kind, Link, PluginEntry, PluginError, Side,
    Transport,
};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long the two ends may take to find each other.
const LIMIT: Duration = Duration::from_secs(20);
/// Most bytes that rustls encrypts before they are sent, as the plugin has it.
const CHUNK: usize = 256 << 10;
/// Slices in a system call.
const SLICES: usize = 256;

/// One direction: the end that sends and the one that receives.
pub(super) struct Stream {
    pub(super) tx: Box<dyn ChannelTx>,
    pub(super) rx: Box<dyn ChannelRx>,
}

/// A way: bulk streams there, and one back.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) streams: Vec<Stream>,
    pub(super) ack: Stream,
    /// What the plugin counts, where it has threads of its own.
    pub(super) meters: Option<Arc<Meters>>,
    /// Channels may end with their link.
    _links: Vec<Box<dyn Link>>,
}

impl Way {
    pub(super) fn plugin(setup: &Setup) -> Result<Way, BenchError> {
        let failed = |doing| move |e| BenchError::Plugin(setup.plugin.clone(), doing, e);
        let address = free_address().map_err(|e| BenchError::Connect("The plugin", e))?;
        let plugin = Plugin::find(setup, address)?;
        let meters = Arc::new(Meters::default());
        let make = |side| plugin.make(setup, side, Arc::clone(&meters) as Arc<dyn Host>);
        let (mut primary, mut standby) = (make(Side::Primary)?, make(Side::Standby)?);
        let mut listener = standby.listen(&[]).map_err(failed("listening"))?;
        let mut links = thread::scope(|scope| {
            let accepting = scope.spawn(|| listener.accept(LIMIT));
            let ours = primary.connect(LIMIT).map_err(failed("connecting"))?;
            let theirs = accepting.join().map_err(|_| BenchError::Panicked)?.map_err(failed("accepting"))?;
            let nobody = || PluginError::new(ErrorCode::TimedOut, io::Error::from(io::ErrorKind::TimedOut));
            Ok([ours, theirs.ok_or_else(|| failed("accepting")(nobody()))?])
        })?;
        let mut open = |name: String| {
            let [ours, theirs] = &mut links;
            thread::scope(|scope| {
                let opening = scope.spawn(|| theirs.open(&name, None, LIMIT));
                let ours = ours.open(&name, None, LIMIT).map_err(failed("opening a channel"))?;
                let theirs = opening.join().map_err(|_| BenchError::Panicked)?;
                Ok((ours, theirs.map_err(failed("opening a channel"))?))
            })
        };
        let ((_, rx), (tx, _)) = open("control".to_owned())?;
        let ack = Stream { tx, rx };
        let streams = (0..plugin.channels).map(|at| {
            let ((tx, _), (_, rx)) = open(if at == 0 { "pages".to_owned() } else { format!("disk:d{at}") })?;
            Ok(Stream { tx, rx })
        });
        let streams = streams.collect::<Result<_, BenchError>>()?;
        let meters = (plugin.channels < setup.streams).then_some(meters);
        Ok(Way { name: "plugin", streams, ack, meters, _links: links.into() })
    }

    pub(super) fn bare(streams: usize) -> Result<Way, BenchError> {
        let stream = || {
            let [primary, standby] = connection()?;
            Ok(Stream { tx: Box::new(Bare(primary)), rx: Box::new(Bare(standby)) })
        };
        Way::of("bare TCP", streams, stream)
    }

    pub(super) fn rustls(streams: usize, keys: &Keys) -> Result<Way, BenchError> {
        let (client, server) = configurations(keys)?;
        let stream = || {
            let [primary, standby] = connection()?;
            let mut new =
                ClientConnection::new(Arc::clone(&client), bench_name()).map_err(io::Error::other)?;
            new.set_buffer_limit(Some(CHUNK));
            let tx = Encrypted { stream: primary, tls: new.into(), sealed: Vec::new() };
            let new = ServerConnection::new(Arc::clone(&server)).map_err(io::Error::other)?;
            let rx = Encrypted { stream: standby, tls: new.into(), sealed: Vec::new() };
            let (tx, rx) = shake_hands(tx, rx)?;
            Ok(Stream { tx: Box::new(tx), rx: Box::new(rx) })
        };
        Way::of("rustls", streams, stream)
    }

    fn of(
        name: &'static str,
        streams: usize,
        stream: impl Fn() -> io::Result<Stream>,
    ) -> Result<Way, BenchError> {
        let all: Result<Vec<_>, _> = (0..=streams).map(|_| stream()).collect();
        let mut all = all.map_err(|e| BenchError::Connect(name, e))?;
        let ack = all.remove(0);
        Ok(Way { name, streams: all, ack, meters: None, _links: Vec::new() })
    }
}

/// The plugin and how it is used.
struct Plugin {
    entry: &'static PluginEntry,
    text: String,
    /// One where the plugin has streams of its own.
    channels: usize,
}

impl Plugin {
    fn find(setup: &Setup, address: SocketAddr) -> Result<Plugin, BenchError> {
        let Some(entry) = aventine_registry::find(Kind::Transport, &setup.plugin) else {
            let known = aventine_registry::names(Kind::Transport).join(", ");
            return Err(BenchError::Unknown(setup.plugin.clone(), known));
        };
        let security = match &setup.keys {
            None => "unsafe_plaintext = true".to_owned(),
            Some(Keys { ca, cert, key }) => {
                format!("tls = {{ ca = {ca:?}, cert = {cert:?}, key = {key:?} }}")
            }
        };
        let text = format!("listen = \"{address}\"\npeer = \"{address}\"\n{security}\n");
        let striped = format!("streams = {}\n{text}", setup.streams);
        Ok(match setup.streams > 1 && (entry.validate)(&striped).is_ok() {
            true => Plugin { entry, text: striped, channels: 1 },
            false => Plugin { entry, text, channels: setup.streams },
        })
    }

    fn make(&self, setup: &Setup, side: Side, host: Arc<dyn Host>) -> Result<Box<dyn Transport>, BenchError> {
        let Factory::Transport(make) = self.entry.factory else {
            unreachable!("it was found among the transports")
        };
        let context = Context {
            guest: "bench".to_owned(),
            id: "transport".to_owned(),
            side,
            state_dir: ".".into(),
            config_dir: ".".into(),
            host,
        };
        make(&self.text, context).map_err(|e| BenchError::Plugin(setup.plugin.clone(), "being set up", e))
    }
}

/// An address that nobody listens on now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn connection() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let primary = TcpStream::connect(listener.local_addr()?)?;
    let standby = listener.accept()?.0;
    primary.set_nodelay(true)?;
    standby.set_nodelay(true)?;
    Ok([primary, standby])
}

fn lost(error: io::Error) -> PluginError {
    PluginError::new(ErrorCode::PeerLost, error)
}

/// A connection and nothing else.
struct Bare(TcpStream);

impl ChannelTx for Bare {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let some = slices.len().min(SLICES);
            let sent = self.0.write_vectored(&slices[..some]).map_err(lost)?;
            IoSlice::advance_slices(&mut slices, sent);
        }
        Ok(())
    }
}

impl ChannelRx for Bare {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.0.read_exact(buf).map_err(lost)
    }
}

/// A connection and rustls.
struct Encrypted {
    stream: TcpStream,
    tls: Connection,
    sealed: Vec<u8>,
}

impl ChannelTx for Encrypted {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let taken = self.tls.writer().write_vectored(slices).map_err(lost)?;
            IoSlice::advance_slices(&mut slices, taken);
            self.sealed.clear();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.sealed).map_err(lost)?;
            }
            self.stream.write_all(&self.sealed).map_err(lost)?;
        }
        Ok(())
    }
}

impl ChannelRx for Encrypted {
    fn recv(&mut self, mut buf: &mut [u8]) -> Result<(), PluginError> {
        while !buf.is_empty() {
            match self.tls.reader().read(buf) {
                Ok(got) => buf = &mut buf[got..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.tls.read_tls(&mut self.stream).map_err(lost)?;
                    self.tls.process_new_packets().map_err(|e| lost(io::Error::other(e)))?;
                }
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }
}

fn shake_hands(mut ours: Encrypted, mut theirs: Encrypted) -> io::Result<(Encrypted, Encrypted)> {
    thread::scope(|scope| {
        let server = scope.spawn(|| theirs.tls.complete_io(&mut theirs.stream).map(drop));
        ours.tls.complete_io(&mut ours.stream)?;
        server.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })?;
    Ok((ours, theirs))
}

fn bench_name() -> rustls_pki_types::ServerName<'static> {
    rustls_pki_types::DnsName::try_from("bench").map(rustls_pki_types::ServerName::DnsName).expect("a name")
}

fn configurations(keys: &Keys) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), BenchError> {
    let certificate = |path: &std::path::Path| {
        CertificateDer::from_pem_file(path).map_err(|e| BenchError::Pem(path.to_owned(), e))
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&keys.ca)?).map_err(BenchError::Tls)?;
    let key = PrivateKeyDer::from_pem_file(&keys.key).map_err(|e| BenchError::Pem(keys.key.clone(), e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(BenchError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(BenchError::Tls)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(&keys.cert)?], key)
        .map_err(BenchError::Tls)?;
    Ok((Arc::new(client), Arc::new(server)))
}
