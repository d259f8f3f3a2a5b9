//! One bounded HTTP request.

use crate::tls::Identity;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use ureq::{Agent, Error};

/// The whole time an endpoint gets for a request, from looking up its name to the last byte of its answer.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);
/// The part of it for the connection: a host that is off says nothing at all, and must not cost the whole.
const CONNECT: Duration = Duration::from_secs(1);
/// Most bytes of an answer. Those to what is asked here have a few hundred.
const MAX_ANSWER: u64 = 64 << 10;
/// Most characters shown of what a refusing endpoint says.
const MAX_SAID: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("gave no answer within {LIMIT:?}")]
    Late,
    #[error("cannot be asked")]
    Request(#[source] Error),
    #[error("refuses with HTTP status {status}: {said}")]
    Status { status: u16, said: String },
}

/// Sends requests. No connection outlives its request: one left over from before the hosts lost each other would only
/// have to be found dead.
pub(crate) struct Client {
    agent: Agent,
}

impl Client {
    pub(crate) fn new(identity: Option<Identity>) -> Client {
        let mut config = Agent::config_builder()
            .timeout_global(Some(LIMIT))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .max_idle_connections(0)
            .max_redirects(0)
            .http_status_as_error(false)
            .proxy(None);
        if let Some(identity) = identity {
            config = config.tls_config(identity.into_tls_config());
        }
        Client { agent: config.build().new_agent() }
    }

    /// The body of the answer to `question`. Blocks for [`LIMIT`] at most.
    pub(crate) fn post(&self, url: &str, question: &Value) -> Result<Vec<u8>, HttpError> {
        let sent = self.agent.post(url).content_type("application/json").send(question.to_string());
        let mut answer = sent.map_err(failed)?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        if status == 200 {
            return body.map_err(failed);
        }
        let said = said(&body.unwrap_or_default());
        Err(HttpError::Status { status: status.as_u16(), said })
    }
}

fn failed(error: Error) -> HttpError {
    match error {
        Error::Timeout(_) => HttpError::Late,
        error => HttpError::Request(error),
    }
}

/// What a refusal says in its words, on one line.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let text = match serde_json::from_slice(body) {
        Ok(Refusal { error }) => error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let line = text.trim().lines().next().unwrap_or("nothing more");
    let shown = line.chars().take(MAX_SAID);
    shown.map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_shown_in_one_safe_line() {
        assert_eq!(said(br#"{"error":"etcdserver: no leader","code":14}"#), "etcdserver: no leader");
        assert_eq!(said(b"404 page not found\n"), "404 page not found");
        assert_eq!(said(b"\x1b[2J\nmore"), "\u{fffd}[2J");
        assert_eq!(said(b""), "nothing more");
        assert_eq!(said(&[b'x'; 9999]).len(), MAX_SAID);
    }
}
