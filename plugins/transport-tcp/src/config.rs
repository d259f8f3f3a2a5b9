//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use aventine_transport_common::{Peers, Settings, TlsKeys};
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
#[schemars(extend("oneOf" = [{ "required": ["tls"] }, { "required": ["unsafe_plaintext"] }]))]
pub(crate) struct Keys {
    /// Where the standby listens: `0.0.0.0:7400`.
    listen: Option<String>,
    /// The other host as `HOST:PORT`, or a list that names both hosts.
    peer: Option<Peers>,
    /// How the hosts prove to each other who they are; `aventine keys` makes the files.
    tls: Option<TlsKeys>,
    /// No encryption: whoever reaches the wire can read and change the guest's memory.
    #[serde(default)]
    unsafe_plaintext: bool,
}

/// Reads the keys.
pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let settings = Settings::new(keys.listen.as_deref(), keys.peer, keys.tls)?;
    check_security(settings.tls.is_some(), keys.unsafe_plaintext)?;
    Ok(settings)
}

fn check_security(tls: bool, plaintext: bool) -> Result<(), ConfigError> {
    match (tls, plaintext) {
        (true, false) | (false, true) => Ok(()),
        (true, true) => Err(ConfigError::bad_value(
            &["unsafe_plaintext"],
            "both `tls` and `unsafe_plaintext = true` are given, and the link is either encrypted or not",
            Some("remove `unsafe_plaintext`"),
        )),
        (false, false) => Err(ConfigError::bad_value(
            &[],
            "neither `tls` nor `unsafe_plaintext = true` is given: how the link is secured must be said",
            Some(
                "make keys with `aventine keys` and add tls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }; \
                 with `unsafe_plaintext = true` instead, anyone on the wire can read and change the guest's memory",
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    const TLS: &str = "tls = { ca = 'ca.pem', cert = 'node.pem', key = 'node.key' }";

    #[test]
    fn the_link_is_encrypted_or_plaintext_by_name() {
        let both = "listen = '0.0.0.0:7400'\npeer = 'standby:7400'";
        let parse_with = |more: &str| parse(&format!("{both}\n{more}"));
        assert!(parse_with("unsafe_plaintext = true").unwrap().tls.is_none());
        for text in [TLS.to_owned(), format!("{TLS}\nunsafe_plaintext = false")] {
            assert!(parse_with(&text).unwrap().tls.is_some());
        }
        for text in ["", "unsafe_plaintext = false"] {
            let ConfigProblem::BadValue { message, help } = parse_with(text).unwrap_err().problem else {
                panic!("a wrong kind of problem");
            };
            assert!(message.contains("`tls`") && message.contains("`unsafe_plaintext = true`"), "{message}");
            assert!(help.unwrap().contains("`aventine keys`"));
        }
        let error = parse_with(&format!("{TLS}\nunsafe_plaintext = true")).unwrap_err();
        assert_eq!(error.path, ["unsafe_plaintext"]);
        assert!(error.to_string().contains("both `tls` and"), "{error}");
    }

    #[test]
    fn bad_values_name_their_key() {
        for (text, path) in [
            ("listen = 'localhost:7400'", vec!["listen"]),
            ("listen = '0.0.0.0:0'", vec!["listen"]),
            ("peer = 'standby'", vec!["peer"]),
            ("unsafe_plaintext = true", vec![]),
            ("peer = 'a:1'\ntls = { cert = 'a', key = 'b' }", vec!["tls"]),
            ("peer = 'a:1'\ntls = { ca = '', cert = 'a', key = 'b' }", vec!["tls", "ca"]),
            (
                "peer = 'a:1'\ntls = { ca = 'a', cert = 'b', key = 'c', nodes = ['a', '10.0.0.1'] }",
                vec!["tls", "nodes", "1"],
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().path, path, "{text}");
        }
        let ConfigProblem::UnknownKey { key, .. } = parse("bind = 'x'").unwrap_err().problem else {
            panic!("a wrong kind of problem");
        };
        assert_eq!(key, "bind");
    }
}
