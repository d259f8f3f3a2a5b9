//! Arbiter plugin `http`: whoever makes the session's object first owns the guest. The object is made by a conditional
//! `PUT`, as S3 and what speaks like it have it, and other HTTP stores.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_arbiter_http.so"]
//! [arbiter]
//! plugin = "http"
//! url = "http://witness.example:8080/aventine"    # neither of the two hosts; objects are made below this path
//! timeout = "2s"                                  # for each step of a request; 100ms to 30s
//! unsafe_plaintext = true                         # who can change bytes on the way decides who owns the guest
//! ```
//! It shows a test-and-set that holds whatever crashes: the answer is always what the store says that it has, never that a
//! request succeeded. A claim whose answer was lost is asked again and finds its own object.
//!
//! ```text
//!  PUT  URL/SESSION   If-None-Match: *   "SESSION primary\n"   2xx: it was made now, 412: it was there
//!  GET  URL/SESSION                                            200 and what it holds: the verdict
//! ```
//! The store must keep what it has confirmed, answer with the newest, and never delete: no expiry on that path. That it honours
//! the condition is tried before the first claim, on an object named `probe`.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    Arbiter, ConfigError, DurationText, ErrorCode, Factory, PluginEntry, PluginError, SessionId, Side,
    Verdict, parse_config, schema,
};
use serde::Deserialize;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "http",
        version: env!("CARGO_PKG_VERSION"),
        summary: "An object in an HTTP store that can be made only once",
        validate: &|text| Http::parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Arbiter(&|text, _| {
            Ok(Box::new(Http::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// Where objects are made: http://HOST[:PORT]/PATH.
    url: String,
    /// Limit for each step of a request, 100ms to 30s; 2s if not set.
    #[schemars(with = "Option<DurationText>")]
    timeout: Option<String>,
    /// Must be true: the wire to the store is not protected.
    #[serde(default)]
    unsafe_plaintext: bool,
}

/// Why there is no verdict. In every case nothing is known, and the engine asks again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the store at {0} cannot be reached")]
    Unreachable(String, #[source] io::Error),
    #[error("the store at {0} does not speak HTTP")]
    NotHttp(String),
    #[error("the store answers {method} with status {status}")]
    Status { method: &'static str, status: u16 },
    #[error("the store makes an object again that is there: it ignores `If-None-Match: *` and cannot decide")]
    Unconditional,
    #[error("the object {0} is no verdict; find out which host runs the guest before you change it")]
    NoVerdict(SessionId),
}

impl From<Error> for PluginError {
    fn from(error: Error) -> PluginError {
        let code = match error {
            Error::Unreachable(..) | Error::Status { .. } => ErrorCode::Unavailable,
            Error::NotHttp(_) | Error::NoVerdict(_) => ErrorCode::Corrupt,
            Error::Unconditional => ErrorCode::Refused,
        };
        PluginError::new(code, error)
    }
}

struct Http {
    /// Host and port.
    authority: String,
    path: String,
    timeout: Duration,
    /// Whether the store has shown that it honours the condition.
    tried: bool,
}

impl Http {
    fn parse(text: &str) -> Result<Http, ConfigError> {
        let keys: Keys = parse_config(text)?;
        let plain = |c: char| c.is_ascii_graphic() && !"?#\"<>\\".contains(c);
        let url = keys.url.strip_prefix("http://").filter(|url| url.chars().all(plain));
        let parts = url.and_then(|url| url.trim_end_matches('/').split_once('/'));
        let Some((host, path)) = parts.filter(|(host, _)| !host.is_empty() && !host.contains('@')) else {
            let help = Some("for example \"http://witness.example:8080/aventine\"");
            return Err(ConfigError::bad_value(&["url"], format!("{:?} is no such URL", keys.url), help));
        };
        if !keys.unsafe_plaintext {
            let help =
                Some("`unsafe_plaintext = true` accepts that who is on the way decides who owns the guest");
            return Err(ConfigError::bad_value(&["url"], "the wire to the store is not protected", help));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { host.to_owned() } else { format!("{host}:80") };
        let range = Duration::from_millis(100)..=Duration::from_secs(30);
        let timeout = Duration::parse_key(&["timeout"], keys.timeout.as_deref().unwrap_or("2s"), &range)?;
        Ok(Http { authority, path: format!("/{path}"), timeout, tried: false })
    }

    /// Makes the object unless it is there; whether it was made.
    fn make(&self, object: &str, content: &str) -> Result<bool, Error> {
        match self.request("PUT", object, content)?.0 {
            200 | 201 | 204 => Ok(true),
            412 => Ok(false),
            status => Err(Error::Status { method: "PUT", status }),
        }
    }

    /// One request; answers status and content.
    fn request(&self, method: &str, object: &str, content: &str) -> Result<(u16, String), Error> {
        let condition = if method == "PUT" { "If-None-Match: *\r\n" } else { "" };
        let answer = self.exchange(&format!(
            "{method} {}/{object} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{condition}Content-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\n{content}",
            self.path,
            self.authority,
            content.len()
        ));
        let answer = answer.map_err(|e| Error::Unreachable(self.authority.clone(), e))?;
        let parts = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split_once("\r\n\r\n"));
        let parts =
            parts.and_then(|(head, content)| Some((head.get(2..5)?.parse().ok()?, content.to_owned())));
        parts.ok_or_else(|| Error::NotHttp(self.authority.clone()))
    }

    fn exchange(&self, request: &str) -> io::Result<String> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(mut socket) => {
                    socket.set_read_timeout(Some(self.timeout))?;
                    socket.set_write_timeout(Some(self.timeout))?;
                    socket.write_all(request.as_bytes())?;
                    let mut answer = Vec::new();
                    // More than any verdict and its headers have.
                    socket.take(1 << 14).read_to_end(&mut answer)?;
                    return Ok(String::from_utf8_lossy(&answer).into_owned());
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

fn verdict(session: SessionId, owner: Side) -> String {
    format!("{session} {}\n", owner.name())
}

impl Arbiter for Http {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        if !self.tried {
            self.probe()?;
        }
        // Made or not, what it holds is the answer.
        self.make(&session.to_string(), &verdict(session, side))?;
        match self.request("GET", &session.to_string(), "")? {
            (200, content) if content == verdict(session, side) => Ok(Verdict::Won),
            (200, content) if content == verdict(session, side.other()) => Ok(Verdict::Lost),
            (200, _) => Err(Error::NoVerdict(session).into()),
            (status, _) => Err(Error::Status { method: "GET", status }.into()),
        }
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        if self.make("probe", "probe\n")? && self.make("probe", "probe\n")? {
            return Err(Error::Unconditional.into());
        }
        self.tried = true;
        Ok(())
    }
}
