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
//! It shows how the two find each other, how a link's channels get their sockets, and that strangers neither get in nor block. What
//! channels promise once they are open, `aventine_kit::stream` keeps.
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
    Channel, ErrorCode, Factory, Link, LinkAbort, Listener, PluginEntry, PluginError, Transport,
    parse_config, schema,
};
use aventine_kit::stream::{Channels, read_within, retry};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::Deserialize;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
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
        Ok((socket, _)) => {
            let begun = read_within(&socket, &mut call, BEGINNING);
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
        let answered = retry(limit, LOOK, |left| {
            let socket = dial(&self.0, &call(number, "control"))?;
            // The answer comes once the standby accepts, which may be much later than the connection.
            read_within(&socket, &mut [0], left.max(LOOK)).map(|()| socket)
        });
        let control = answered.map_err(failed(ErrorCode::TimedOut, "no standby answers at `path`"))?;
        Ok(UnixLink::boxed(number, control, End::Calls(self.0.clone())))
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
    channels: Channels,
}

impl UnixLink {
    fn boxed(number: u64, control: UnixStream, end: End) -> Box<dyn Link> {
        Box::new(UnixLink { number, control: Some(control), end, channels: Channels::default() })
    }
}

impl Link for UnixLink {
    fn open(&mut self, name: &str, _: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let (call, mut control) = (call(self.number, name), self.control.take_if(|_| name == "control"));
        self.channels.open(limit, || match &self.end {
            _ if control.is_some() => Ok(control.take()),
            End::Calls(path) => dial(path, &call).map(Some),
            // What else comes meanwhile is left from a link that has ended.
            End::IsCalled(listener) => {
                Ok(next(listener)?.and_then(|(came, socket)| (came == call).then_some(socket)))
            }
        })
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        self.channels.aborter()
    }

    fn peer(&self) -> String {
        format!("the other process, link {:x}", self.number)
    }
}
