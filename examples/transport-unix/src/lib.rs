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

mod link;

use aventine_api::{
    Context, ErrorCode, Factory, Link, Listener, PluginEntry, PluginError, Transport, parse_config,
};
use link::{Side, UnixLink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::Deserialize;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "unix",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Unix sockets between two processes of one machine",
        validate: &|text| parse_config::<Keys>(text).map(drop),
        factory: Factory::Transport(&|text, context: Context| {
            let keys: Keys = parse_config(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Unix { path: context.config_dir.join(keys.path) }))
        }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    path: PathBuf,
}

/// What failed, and the system's word on it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(&'static str, #[source] io::Error);

fn failed(code: ErrorCode, what: &'static str) -> impl Fn(io::Error) -> PluginError {
    move |error| PluginError::new(code, Failed(what, error))
}

const LISTEN: &str =
    "cannot listen on `path`: its directory must exist, and a socket's path be shorter than 108 bytes";
/// How long a stranger may keep back what a connection begins with; also the least time that is waited.
const STRANGER: Duration = Duration::from_millis(100);

/// What a connection begins with: the number of its link and the name of its channel, padded.
type Call = [u8; 64];

fn call(link: [u8; 8], name: &str) -> Call {
    let mut call = [0; 64];
    call.iter_mut().zip(link.into_iter().chain(name.bytes())).for_each(|(to, from)| *to = from);
    call
}

/// The next connection and its beginning; `None` when none came until `end`.
fn next(door: &UnixListener, end: Instant) -> io::Result<Option<(UnixStream, Call)>> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        set_socket_timeout(door, Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
        match door.accept() {
            Ok((mut socket, _)) => {
                let mut call = [0; 64];
                socket.set_read_timeout(Some(STRANGER))?;
                match socket.read_exact(&mut call).and_then(|()| socket.set_read_timeout(None)) {
                    Ok(()) => return Ok(Some((socket, call))),
                    Err(error) => tracing::debug!(%error, "a stranger was sent away"),
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

struct Unix {
    path: PathBuf,
}

impl Transport for Unix {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        static LINKS: AtomicU32 = AtomicU32::new(0);
        let number = u64::from(std::process::id()) << 32 | u64::from(LINKS.fetch_add(1, Ordering::Relaxed));
        let (end, link) = (Instant::now() + limit, number.to_le_bytes());
        loop {
            // The answer comes once the standby accepts, which may be much later than the connection.
            let left = end.saturating_duration_since(Instant::now());
            let answered = UnixStream::connect(&self.path).and_then(|mut socket| {
                socket.write_all(&call(link, "control"))?;
                socket.set_read_timeout(Some(left.max(STRANGER)))?;
                socket.read_exact(&mut [0])?;
                socket.set_read_timeout(None).map(|()| socket)
            });
            match answered {
                Ok(socket) => {
                    return Ok(Box::new(UnixLink::new(socket, Side::Primary(self.path.clone()), link)));
                }
                Err(_) if !left.is_zero() => std::thread::sleep(STRANGER / 5),
                Err(e) => return Err(failed(ErrorCode::TimedOut, "no standby answers at `path`")(e)),
            }
        }
    }

    fn listen(&mut self, _routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        // What is there belongs to a dead process, or to one that has become the primary.
        let _ = fs::remove_file(&self.path);
        let door = UnixListener::bind(&self.path).map_err(failed(ErrorCode::Unavailable, LISTEN))?;
        let own = fs::set_permissions(&self.path, Permissions::from_mode(0o600));
        own.map_err(failed(ErrorCode::Unavailable, LISTEN))?;
        Ok(Box::new(Listening(Arc::new(door))))
    }
}

struct Listening(Arc<UnixListener>);

impl Listener for Listening {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let end = Instant::now() + limit;
        let waiting = failed(ErrorCode::Io, "cannot wait for a primary");
        while let Some((mut socket, first)) = next(&self.0, end).map_err(&waiting)? {
            let link = std::array::from_fn(|at| first[at]);
            // A primary that has gone meanwhile is none.
            if first == call(link, "control") && socket.write_all(&[1]).is_ok() {
                return Ok(Some(Box::new(UnixLink::new(socket, Side::Standby(Arc::clone(&self.0)), link))));
            }
        }
        Ok(None)
    }
}
