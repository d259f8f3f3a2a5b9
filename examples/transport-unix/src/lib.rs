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

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    ErrorCode, Factory, Link, Listener, PluginEntry, PluginError, Transport, parse_config, schema,
};
use link::{Call, UnixLink, next};
use serde::Deserialize;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
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
struct Failed(&'static str, #[source] std::io::Error);

fn failed(code: ErrorCode, what: &'static str) -> impl Fn(std::io::Error) -> PluginError {
    move |error| PluginError::new(code, Failed(what, error))
}

/// How long one look for the other side lasts, and how long a stranger may keep back what a connection begins with.
const LOOK: Duration = Duration::from_millis(100);

struct Unix(PathBuf);

impl Transport for Unix {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        static LINKS: AtomicU32 = AtomicU32::new(0);
        let link = u64::from(std::process::id()) << 32 | u64::from(LINKS.fetch_add(1, Ordering::Relaxed));
        let (end, path) = (Instant::now() + limit, self.0.clone());
        loop {
            // The answer comes once the standby accepts, which may be much later than the connection.
            let left = end.saturating_duration_since(Instant::now());
            let answered = Call::new(link, "control").make(&path).and_then(|mut socket| {
                socket.set_read_timeout(Some(left.max(LOOK)))?;
                socket.read_exact(&mut [0])?;
                socket.set_read_timeout(None).map(|()| socket)
            });
            match answered {
                Ok(control) => {
                    let call = move |call: Call, _| call.make(&path);
                    return Ok(Box::new(UnixLink::new(link, control, Box::new(call))));
                }
                Err(_) if !left.is_zero() => std::thread::sleep(LOOK / 5),
                Err(e) => return Err(failed(ErrorCode::TimedOut, "no standby answers at `path`")(e)),
            }
        }
    }

    fn listen(&mut self, _routes: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        // What is there belongs to a dead process, or to one that has become the primary.
        let _ = fs::remove_file(&self.0);
        let door = UnixListener::bind(&self.0).and_then(|door| {
            fs::set_permissions(&self.0, Permissions::from_mode(0o600))?;
            Ok(door)
        });
        Ok(Box::new(Door(Arc::new(door.map_err(failed(ErrorCode::Unavailable, "cannot listen at `path`"))?))))
    }
}

struct Door(Arc<UnixListener>);

impl Listener for Door {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let end = Instant::now() + limit;
        let waiting = failed(ErrorCode::Io, "cannot wait for a primary");
        while let Some((call, mut socket)) = next(&self.0, end).map_err(&waiting)? {
            // A primary that has gone meanwhile is none.
            if call == Call::new(call.link(), "control") && socket.write_all(&[1]).is_ok() {
                let (link, door) = (call.link(), Arc::clone(&self.0));
                // What does not fit is left from a link that has ended.
                let called = move |call: Call, end| {
                    let mut all = std::iter::from_fn(|| next(&door, end).transpose());
                    let own = all.find(|came| !matches!(came, Ok((theirs, _)) if *theirs != call));
                    own.unwrap_or(Err(std::io::ErrorKind::TimedOut.into())).map(|(_, socket)| socket)
                };
                return Ok(Some(Box::new(UnixLink::new(link, socket, Box::new(called)))));
            }
        }
        Ok(None)
    }
}
