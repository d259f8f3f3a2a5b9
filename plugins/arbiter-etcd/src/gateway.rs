//! What is asked of etcd's v3 gateway (gRPC as JSON), and what its answers mean.
//!
//! Keys and values are base64, 64-bit numbers are strings, and fields with a default value are left out of answers:
//! so an answer without a field proves nothing, and only a value that is there is believed.

use aventine_api::{SessionId, Side};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// Where transactions are asked for.
pub(crate) const TXN: &str = "/v3/kv/txn";
/// Where keys are read.
pub(crate) const RANGE: &str = "/v3/kv/range";

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("does not answer as etcd's v3 gateway does")]
    Json(#[from] serde_json::Error),
    #[error("answers without saying who owns the guest")]
    Silent,
    #[error("answers without saying which cluster it belongs to")]
    Nameless,
    #[error(
        "Key {key} is {found:?}; find out which host runs the guest, then run `etcdctl put {key} '{session} primary'` \
         or `etcdctl put {key} '{session} standby'`"
    )]
    Corrupt { key: String, session: SessionId, found: String },
}

#[derive(Deserialize)]
struct TxnAnswer {
    responses: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    response_range: Option<Range>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct RangeAnswer {
    header: Header,
}

#[derive(Deserialize)]
struct Header {
    cluster_id: Option<String>,
}

/// The key of one session.
pub(crate) struct Key {
    name: String,
    session: SessionId,
}

impl Key {
    pub(crate) fn new(prefix: &str, guest: &str, session: SessionId) -> Key {
        Key { name: format!("{prefix}{guest}/{session}"), session }
    }

    /// The transaction by which `side` claims. Both of its ways end by reading the key.
    pub(crate) fn claim(&self, side: Side) -> Value {
        let key = STANDARD.encode(&self.name);
        let read = json!({ "request_range": { "key": key } });
        let put = json!({ "request_put": { "key": key, "value": STANDARD.encode(self.value(side)) } });
        json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [put, read],
            "failure": [read],
        })
    }

    /// Who owns the guest, from the answer to [`Key::claim`].
    pub(crate) fn owner(&self, answer: &[u8]) -> Result<Side, AnswerError> {
        let answer: TxnAnswer = serde_json::from_slice(answer)?;
        let last = answer.responses.into_iter().next_back().and_then(|r| r.response_range);
        let [found] = &last.ok_or(AnswerError::Silent)?.kvs[..] else { return Err(AnswerError::Silent) };
        if found.key != STANDARD.encode(&self.name) {
            return Err(AnswerError::Silent);
        }
        let value = STANDARD.decode(&found.value).unwrap_or_else(|_| found.value.clone().into_bytes());
        let owner = [Side::Primary, Side::Standby].into_iter().find(|&s| value == self.value(s).as_bytes());
        owner.ok_or_else(|| AnswerError::Corrupt {
            key: self.name.clone(),
            session: self.session,
            found: String::from_utf8_lossy(&value).chars().take(80).collect(),
        })
    }

    fn value(&self, owner: Side) -> String {
        format!("{} {}", self.session, owner.name())
    }
}

/// A read that changes nothing and needs the majority of the cluster.
pub(crate) fn probe(prefix: &str) -> Value {
    json!({ "key": STANDARD.encode(prefix), "count_only": true })
}

/// Whether the answer to [`probe`] is one.
pub(crate) fn check_probe(answer: &[u8]) -> Result<(), AnswerError> {
    let answer: RangeAnswer = serde_json::from_slice(answer)?;
    answer.header.cluster_id.map(drop).ok_or(AnswerError::Nameless)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new("/aventine/", "web", SessionId([0x5a; 16]))
    }

    fn answer(key: &str, value: &str) -> Vec<u8> {
        let found = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
        let read = json!({ "response_range": { "kvs": [found], "count": "1" } });
        json!({ "header": {}, "responses": [{ "response_put": {} }, read] }).to_string().into_bytes()
    }

    #[test]
    fn only_the_value_that_was_read_decides() {
        let name = key().name;
        assert_eq!(name, format!("/aventine/web/{}", "5a".repeat(16)));
        for side in [Side::Primary, Side::Standby] {
            assert_eq!(key().owner(&answer(&name, &key().value(side))).unwrap(), side);
        }
        let foreign = answer("/aventine/web/other", &key().value(Side::Primary));
        for silent in [
            r#"{"responses":[]}"#,
            r#"{"succeeded":true,"responses":[{"response_put":{}}]}"#,
            r#"{"responses":[{"response_range":{}}]}"#,
            std::str::from_utf8(&foreign).unwrap(),
        ] {
            let found = key().owner(silent.as_bytes());
            assert!(matches!(found, Err(AnswerError::Silent)), "{silent}: {found:?}");
        }
        for nonsense in ["", "{}", "[]", "null", r#"{"succeeded":true}"#, "<html>", r#"{"responses":[{}"#] {
            let found = key().owner(nonsense.as_bytes());
            assert!(matches!(found, Err(AnswerError::Json(_))), "{nonsense}: {found:?}");
        }
    }

    #[test]
    fn any_other_value_is_damage() {
        let other = format!("{} primary", SessionId([1; 16]));
        let long = format!("{} primary\n", SessionId([0x5a; 16]));
        for value in ["", "primary", &other, &long] {
            let found = key().owner(&answer(&key().name, value)).unwrap_err();
            assert!(matches!(found, AnswerError::Corrupt { .. }), "{found}");
            assert!(found.to_string().contains(&format!("etcdctl put {}", key().name)), "{found}");
        }
    }

    #[test]
    fn a_probe_wants_a_cluster() {
        check_probe(br#"{"header":{"cluster_id":"14841639068965178418","revision":"1"}}"#).unwrap();
        for nonsense in ["{}", r#"{"header":{}}"#, "ok"] {
            check_probe(nonsense.as_bytes()).unwrap_err();
        }
    }
}
