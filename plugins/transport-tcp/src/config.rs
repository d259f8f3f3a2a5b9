//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{ConfigError, parse_config};
use aventine_transport_common::{MAX_STREAMS, Options, Peers, Settings, TlsKeys};
use serde::Deserialize;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Bulk below control, which has 6.
const PRIORITIES: RangeInclusive<u8> = 0..=5;
/// A slower link carries no guest, and a faster one none can fill.
const BANDWIDTHS: RangeInclusive<u64> = 1 << 20..=1 << 40;

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
    /// Connections of each bulk channel, 1 if not set; the smaller number of both hosts counts.
    #[schemars(range(min = 1, max = 16))]
    streams: Option<u8>,
    /// Most that this host sends on bulk channels together: `100MiB/s`. No limit if not set.
    #[schemars(extend("pattern" = r"^[0-9]+ *(KiB|MiB|GiB)/s$"))]
    bandwidth: Option<String>,
    /// Of bulk's packets, as socket priority and DSCP class selector; control's are 6. Unmarked if not set.
    #[schemars(range(min = 0, max = 5))]
    priority: Option<u8>,
    /// The address of this host that connections to `peer` are made from. The system chooses if not set.
    source: Option<String>,
}

/// Reads the keys.
pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let mut settings = Settings::new(keys.listen.as_deref(), keys.peer, keys.tls)?;
    check_security(settings.tls.is_some(), keys.unsafe_plaintext)?;
    settings.options = Options {
        streams: within("streams", keys.streams, &(1..=MAX_STREAMS))?.unwrap_or(1),
        bandwidth: keys.bandwidth.map(|text| parse_bandwidth(&text)).transpose()?,
        priority: within("priority", keys.priority, &PRIORITIES)?,
        source: keys.source.map(|text| parse_source(&text)).transpose()?,
    };
    Ok(settings)
}

fn within(key: &str, value: Option<u8>, range: &RangeInclusive<u8>) -> Result<Option<u8>, ConfigError> {
    match value {
        Some(number) if !range.contains(&number) => {
            let help = format!("it can be from {} to {}", range.start(), range.end());
            Err(ConfigError::bad_value(&[key], format!("{number} is out of range"), Some(&help)))
        }
        value => Ok(value),
    }
}

fn parse_bandwidth(text: &str) -> Result<u64, ConfigError> {
    let bad = |what: &str, help: &str| {
        ConfigError::bad_value(&["bandwidth"], format!("{text:?} is {what}"), Some(help))
    };
    let rate = text.strip_suffix("/s").and_then(u64::parse).ok_or_else(|| {
        bad("not a bandwidth", "write a whole number, its unit and \"/s\", for example \"100MiB/s\"")
    })?;
    if BANDWIDTHS.contains(&rate) {
        return Ok(rate);
    }
    let [least, most] = [BANDWIDTHS.start(), BANDWIDTHS.end()].map(|rate| rate.show());
    Err(bad("out of range", &format!("it can be from {least}/s to {most}/s")))
}

fn parse_source(text: &str) -> Result<IpAddr, ConfigError> {
    text.parse().ok().filter(|source: &IpAddr| !source.is_unspecified()).ok_or_else(|| {
        ConfigError::bad_value(
            &["source"],
            format!("{text:?} is not the IP address of a host"),
            Some("for example \"192.0.2.6\" or \"2001:db8::6\", without a port; leave it out to let the system choose"),
        )
    })
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
    fn traffic_is_as_the_keys_say() {
        let options =
            |more: &str| parse(&format!("peer = 'a:1'\nunsafe_plaintext = true\n{more}")).unwrap().options;
        let Options { streams, bandwidth, priority, source } = options("");
        assert_eq!((streams, bandwidth, priority, source), (1, None, None, None));
        let Options { streams, bandwidth, priority, source } =
            options("streams = 16\nbandwidth = '100 MiB/s'\npriority = 0\nsource = '2001:db8::6'");
        assert_eq!((streams, bandwidth, priority), (16, Some(100 << 20), Some(0)));
        assert_eq!(source, Some("2001:db8::6".parse().unwrap()));
        let error = parse("peer = 'a:1'\nunsafe_plaintext = true\nbandwidth = '2048GiB/s'").unwrap_err();
        let ConfigProblem::BadValue { message, help } = error.problem else { panic!("another problem") };
        assert_eq!(message, "\"2048GiB/s\" is out of range");
        assert_eq!(help.unwrap(), "it can be from 1MiB/s to 1024GiB/s");
    }

    #[test]
    fn bad_values_name_their_key() {
        for (text, path) in [
            ("listen = 'localhost:7400'", vec!["listen"]),
            ("listen = '0.0.0.0:0'", vec!["listen"]),
            ("peer = 'standby'", vec!["peer"]),
            ("unsafe_plaintext = true", vec![]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nstreams = 0", vec!["streams"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nstreams = 17", vec!["streams"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nstreams = -1", vec!["streams"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\npriority = 6", vec!["priority"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nbandwidth = '100MiB'", vec!["bandwidth"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nbandwidth = '1KiB/s'", vec!["bandwidth"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nsource = 'a'", vec!["source"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nsource = '0.0.0.0'", vec!["source"]),
            ("peer = 'a:1'\nunsafe_plaintext = true\nsource = '192.0.2.6:1'", vec!["source"]),
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
