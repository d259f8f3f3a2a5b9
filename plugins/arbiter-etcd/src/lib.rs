//! Arbiter plugin `etcd`: the first side to create a key in an etcd cluster owns the guest.
//!
//! ```toml
//! [arbiter]
//! plugin = "etcd"
//! endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
//! prefix = "/aventine/"    # default; before the names of all keys
//! ca = "etcd-ca.pem"       # for https: who may be an endpoint. Paths are meant from the configuration file
//! cert = "etcd.pem"        # where the endpoints ask for a certificate, with its private key
//! key = "etcd.key"
//! ```
//! **The endpoints must be members of one cluster, the same on both hosts**, with more than half of its members on
//! neither host: a cluster that dies with a host decides nothing. An endpoint is any member, leader or not. An `http`
//! endpoint takes `unsafe_plaintext = true`: whoever is on the wire can forge a verdict.
//!
//! ```text
//!  PREFIX GUEST / SESSION      the verdict: `SESSION primary` or `SESSION standby`; never changed or removed
//!
//!  claim ─► endpoint: one transaction ───────────────────────────────────────► the key's value is the verdict
//!              │         not created yet? ─ yes ─► put own side ─► read the key
//!              │                          └ no ──────────────────► read the key
//!              └ refused, silent, no leader, nonsense ─► the next endpoint … ─► none left: an error
//! ```
//! Invariants:
//! - What decides is the value that the transaction read, never that it was sent, or that it seemed to succeed. A
//!   transaction whose answer was lost may have taken effect; the next claim reads what it did.
//! - The transaction goes through the cluster's log, so that a member which is behind, or cut off from the others,
//!   cannot answer from its own memory.
//! - A claim asks each endpoint once and each within two seconds, a slow or malicious one too: it is bounded.
//! - A key with any other value is an error and never a guess.
//!
//! Restoring the cluster from a backup forgets verdicts: then stop protection first.
#![forbid(unsafe_code)]

mod config;
mod gateway;
mod http;
mod tls;

use aventine_api::{
    Arbiter, Context, ErrorCode, Factory, PluginEntry, PluginError, SessionId, Side, Verdict, schema,
};
use config::Settings;
use gateway::{AnswerError, Key};
use http::{Client, HttpError};
use std::error::Error;
use tls::TlsError;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "etcd",
        version: env!("CARGO_PKG_VERSION"),
        summary: "The first to create a key in an etcd cluster",
        validate: &|text| Settings::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Arbiter(&|text, context| {
            let settings = Settings::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Etcd::new(settings, &context)?))
        }),
        upkeep: None,
    }
}

struct Etcd {
    client: Client,
    endpoints: Vec<String>,
    /// The endpoint to ask first: the one that answered last.
    first: usize,
    prefix: String,
    guest: String,
}

/// Why one endpoint gave no verdict.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Why there is no verdict. In every case nothing is known.
#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error("No endpoint of etcd can be asked: {}", list(.0))]
    Nobody(Vec<(String, AskError)>),
    #[error("{endpoint} holds no verdict")]
    Corrupt { endpoint: String, source: AnswerError },
}

/// Each endpoint's failure with its causes.
fn list(failures: &[(String, AskError)]) -> String {
    let chain = |error: &dyn Error| {
        let (mut text, mut next) = (error.to_string(), error.source());
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    };
    let lines: Vec<_> = failures.iter().map(|(endpoint, e)| format!("{endpoint} {}", chain(e))).collect();
    lines.join("; ")
}

impl Etcd {
    fn new(settings: Settings, context: &Context) -> Result<Etcd, TlsError> {
        let tls = settings.tls.map(|files| tls::load(&files, &context.config_dir)).transpose()?;
        let Settings { endpoints, prefix, .. } = settings;
        Ok(Etcd { client: Client::new(tls), endpoints, first: 0, prefix, guest: context.guest.clone() })
    }

    /// Asks one endpoint after the other, until one gives an answer.
    fn ask<T>(&mut self, question: impl Fn(&Client, &str) -> Result<T, AskError>) -> Result<T, ClaimError> {
        let mut failures = Vec::new();
        for at in (0..self.endpoints.len()).map(|n| (self.first + n) % self.endpoints.len()) {
            let endpoint = &self.endpoints[at];
            match question(&self.client, endpoint) {
                Ok(answer) => {
                    self.first = at;
                    return Ok(answer);
                }
                // The cluster has spoken: every endpoint says the same.
                Err(AskError::Answer(source @ AnswerError::Corrupt { .. })) => {
                    return Err(ClaimError::Corrupt { endpoint: endpoint.clone(), source });
                }
                Err(error) => {
                    tracing::debug!(endpoint, %error, "An endpoint of etcd gave no answer");
                    failures.push((endpoint.clone(), error));
                }
            }
        }
        Err(ClaimError::Nobody(failures))
    }
}

impl Arbiter for Etcd {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        let key = Key::new(&self.prefix, &self.guest, session);
        let owner = self.ask(|client, endpoint| {
            let answer = client.post(&format!("{endpoint}{}", gateway::TXN), &key.claim(side))?;
            Ok(key.owner(&answer)?)
        })?;
        tracing::info!(%session, owner = owner.name(), "etcd says who owns the guest");
        Ok(if owner == side { Verdict::Won } else { Verdict::Lost })
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        let question = gateway::probe(&self.prefix);
        Ok(self.ask(|client, endpoint| {
            let answer = client.post(&format!("{endpoint}{}", gateway::RANGE), &question)?;
            Ok(gateway::check_probe(&answer)?)
        })?)
    }
}

impl From<ClaimError> for PluginError {
    fn from(error: ClaimError) -> PluginError {
        let code = match &error {
            ClaimError::Nobody(_) => ErrorCode::Unavailable,
            ClaimError::Corrupt { .. } => ErrorCode::Corrupt,
        };
        PluginError::new(code, error)
    }
}

impl From<TlsError> for PluginError {
    fn from(error: TlsError) -> PluginError {
        PluginError::new(ErrorCode::Config, error)
    }
}
