//! Transport plugin `unix`: a primary and a standby on one machine, for tests and experiments. It survives the loss of
//! either process, not that of the machine.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_transport_unix.so"]
//! [transport]
//! plugin = "unix"
//! path = "/run/aventine-web.sock"    # the same for both; belongs to the one that began to listen last
//! ```
//! It shows links and channels, time limits, an abort from any thread, and that strangers neither get in nor block.
//!
//! ```text
//!  primary                                                 standby
//!  connect ── link's number, `control` ──────────────────► accept
//!          ◄─ one byte ───────────────────────────────────
//!  open    ── link's number, channel's name ─────────────► open, now or later
//! ```
//! Each channel is a connection of its own, so bulk never waits in front of a heartbeat. The socket lets in its owner and
//! root alone; its directory must be theirs, too. A disk's `route` is a network's address and means nothing here.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    Channel, ChannelRx, ChannelTx, ErrorCode, Factory, Link, LinkAbort, Listener, PluginEntry, PluginError,
    Transport, parse_config, schema,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::Deserialize;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "unix",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Unix sockets between two processes of one machine",
        validate: &|text| parse_config::<Keys>(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Transport(&|text, context| {
            let keys: Keys = parse_config(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Unix(context.config_dir.join(keys.path))))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// Where the standby listens, the same for both sides; relative to the configuration file.
    path: PathBuf,
}

/// What failed, and the system's word on it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(&'static str, #[source] io::Error);

fn failed(code: ErrorCode, what: &'static str) -> impl Fn(io::Error) -> PluginError {
    move |error| PluginError::new(code, Failed(what, error))
}

/// Between two looks for the other side.
const LOOK: Duration = Duration::from_millis(20);
/// How long a stranger may keep back what a connection begins with.
const BEGINNING: Duration = Duration::from_secs(1);

/// What a connection begins with: the number of its link, then the name of its channel, padded.
type Call = [u8; 64];

fn call(link: u64, name: &str) -> Call {
    let mut bytes = link.to_le_bytes().into_iter().chain(name.bytes());
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
}

/// The primary's side of a new connection.
fn dial(path: &Path, call: &Call) -> io::Result<UnixStream> {
    let mut socket = UnixStream::connect(path)?;
    socket.write_all(call).map(|()| socket)
}

/// The next connection and what it begins with, if one comes within [`LOOK`].
fn next(listener: &UnixListener) -> io::Result<Option<(Call, UnixStream)>> {
    let mut call = [0; 64];
    match listener.accept() {
        Ok((mut socket, _)) => {
            socket.set_read_timeout(Some(BEGINNING))?;
            let begun = socket.read_exact(&mut call).and_then(|()| socket.set_read_timeout(None));
            Ok(begun.ok().map(|()| (call, socket)))
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

struct Unix(PathBuf);

impl Transport for Unix {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        static LINKS: AtomicU32 = AtomicU32::new(0);
        let number = u64::from(std::process::id()) << 32 | u64::from(LINKS.fetch_add(1, SeqCst));
        let end = Instant::now() + limit;
        loop {
            // The answer comes once the standby accepts, which may be much later than the connection.
            let left = end.saturating_duration_since(Instant::now());
            let answered = dial(&self.0, &call(number, "control")).and_then(|mut socket| {
                socket.set_read_timeout(Some(left.max(LOOK)))?;
                socket.read_exact(&mut [0])?;
                socket.set_read_timeout(None).map(|()| socket)
            });
            match answered {
                Ok(control) => return Ok(UnixLink::boxed(number, control, End::Calls(self.0.clone()))),
                Err(_) if !left.is_zero() => std::thread::sleep(LOOK),
                Err(e) => return Err(failed(ErrorCode::TimedOut, "no standby answers at `path`")(e)),
            }
        }
    }

    fn listen(&mut self, _routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        // What is there belongs to a dead process, or to one that has become the primary.
        let _ = fs::remove_file(&self.0);
        let listener = UnixListener::bind(&self.0).and_then(|listener| {
            fs::set_permissions(&self.0, Permissions::from_mode(0o600))?;
            set_socket_timeout(&listener, Timeout::Recv, Some(LOOK))?;
            Ok(listener)
        });
        let listener = listener.map_err(failed(ErrorCode::Unavailable, "cannot listen at `path`"))?;
        Ok(Box::new(Door(Arc::new(listener))))
    }
}

struct Door(Arc<UnixListener>);

impl Listener for Door {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let came = next(&self.0).map_err(failed(ErrorCode::Io, "cannot wait for a primary"))?;
            let Some((came, mut socket)) = came else { continue };
            let number = u64::from_le_bytes(std::array::from_fn(|at| came[at]));
            // A primary that has gone meanwhile is none.
            if came == call(number, "control") && socket.write_all(&[1]).is_ok() {
                return Ok(Some(UnixLink::boxed(number, socket, End::IsCalled(Arc::clone(&self.0)))));
            }
        }
        Ok(None)
    }
}

/// How this side comes to one more connection.
enum End {
    Calls(PathBuf),
    IsCalled(Arc<UnixListener>),
}

struct UnixLink {
    number: u64,
    /// Until it is opened.
    control: Option<UnixStream>,
    end: End,
    sockets: Arc<Sockets>,
}

impl UnixLink {
    fn boxed(number: u64, control: UnixStream, end: End) -> Box<dyn Link> {
        Box::new(UnixLink { number, control: Some(control), end, sockets: Arc::default() })
    }

    /// Another connection; on the standby what else comes meanwhile is left from a link that has ended.
    fn connection(&self, call: Call, limit: Duration) -> Result<UnixStream, PluginError> {
        let lost = failed(ErrorCode::PeerLost, "the channel cannot be opened");
        let listener = match &self.end {
            End::Calls(path) => return dial(path, &call).map_err(lost),
            End::IsCalled(listener) => listener,
        };
        let end = Instant::now() + limit;
        while Instant::now() < end && !self.sockets.ended.load(SeqCst) {
            if let Some((_, socket)) = next(listener).map_err(&lost)?.filter(|(came, _)| *came == call) {
                return Ok(socket);
            }
        }
        let code = if self.sockets.ended.load(SeqCst) { ErrorCode::PeerLost } else { ErrorCode::TimedOut };
        Err(failed(code, "the primary has not opened the channel")(ErrorKind::TimedOut.into()))
    }
}

impl Link for UnixLink {
    fn open(&mut self, name: &str, _: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let control = self.control.take_if(|_| name == "control").map(Ok);
        let socket = control.unwrap_or_else(|| self.connection(call(self.number, name), limit));
        let half = Half { socket: Arc::new(socket?), sockets: Arc::clone(&self.sockets) };
        let mut all = self.sockets.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::downgrade(&half.socket));
        half.done(Ok(()))?;
        Ok((Box::new(half.clone()), Box::new(half)))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.sockets) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        format!("the other process, link {:x}", self.number)
    }
}

/// The sockets of a link's channels. Weak: a channel ends when both its halves are dropped.
#[derive(Default)]
struct Sockets {
    ended: AtomicBool,
    all: Mutex<Vec<Weak<UnixStream>>>,
}

impl LinkAbort for Sockets {
    fn abort(&self) {
        self.ended.store(true, SeqCst);
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    }
}

/// One half of a channel.
#[derive(Clone)]
struct Half {
    socket: Arc<UnixStream>,
    sockets: Arc<Sockets>,
}

impl Half {
    /// What an ended link's sockets still have in them counts for nothing.
    fn done(&self, done: io::Result<()>) -> Result<(), PluginError> {
        let ended = self.sockets.ended.load(SeqCst);
        let done = if ended { Err(io::Error::other("the link was ended on this side")) } else { done };
        done.map_err(failed(ErrorCode::PeerLost, "the channel has ended"))
    }
}

impl ChannelTx for Half {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.done(parts.iter().try_for_each(|part| (&*self.socket).write_all(part)))
    }
}

impl ChannelRx for Half {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        self.done((&*self.socket).read_exact(buf))
    }
}
