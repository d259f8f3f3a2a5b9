//! The plugin's keys.

use crate::tls::TlsFiles;
use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

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

#[derive(Deserialize, JsonSchema)]
#[schemars(crate = "aventine_api::schemars")]
#[serde(untagged, expecting = "an address, or a list with the addresses of both hosts")]
enum Peers {
    One(String),
    Both(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct TlsKeys {
    /// The CA's certificate.
    ca: PathBuf,
    /// This host's certificate.
    cert: PathBuf,
    /// This host's private key.
    key: PathBuf,
    /// Names of the two hosts: no other of the same CA is let in. All are, if not set.
    #[serde(default)]
    nodes: Vec<String>,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the standby listens.
    pub(crate) listen: Option<SocketAddr>,
    /// Where the primary connects to; where there are several, this host's own is left out.
    pub(crate) peers: Vec<Address>,
    /// `None` for plaintext.
    pub(crate) tls: Option<TlsFiles>,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let keys: Keys = parse_config(text)?;
        if keys.listen.is_none() && keys.peer.is_none() {
            return Err(ConfigError::bad_value(
                &[],
                "neither `listen` nor `peer` is given",
                Some("the standby needs `listen`, the primary `peer`; one file with both serves both hosts"),
            ));
        }
        let listen = keys.listen.as_deref().map(parse_listen).transpose()?;
        let peers = match keys.peer {
            None => Vec::new(),
            Some(Peers::One(peer)) => vec![parse_peer(&["peer"], &peer)?],
            Some(Peers::Both(peers)) => parse_peers(&peers)?,
        };
        let tls = parse_security(keys.tls, keys.unsafe_plaintext)?;
        Ok(Settings { listen, peers, tls })
    }
}

fn parse_security(tls: Option<TlsKeys>, plaintext: bool) -> Result<Option<TlsFiles>, ConfigError> {
    match (tls, plaintext) {
        (Some(tls), false) => parse_tls(tls).map(Some),
        (None, true) => Ok(None),
        (Some(_), true) => Err(ConfigError::bad_value(
            &["unsafe_plaintext"],
            "both `tls` and `unsafe_plaintext = true` are given, and the link is either encrypted or not",
            Some("remove `unsafe_plaintext`"),
        )),
        (None, false) => Err(ConfigError::bad_value(
            &[],
            "neither `tls` nor `unsafe_plaintext = true` is given: how the link is secured must be said",
            Some(
                "make keys with `aventine keys` and add tls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }; \
                 with `unsafe_plaintext = true` instead, anyone on the wire can read and change the guest's memory",
            ),
        )),
    }
}

fn parse_tls(keys: TlsKeys) -> Result<TlsFiles, ConfigError> {
    for (name, path) in [("ca", &keys.ca), ("cert", &keys.cert), ("key", &keys.key)] {
        if path.as_os_str().is_empty() {
            return Err(ConfigError::bad_value(&["tls", name], "no file is named", None));
        }
    }
    let node = |(at, name): (usize, String)| match ServerName::try_from(name.clone()) {
        Ok(ServerName::DnsName(node)) => Ok(ServerName::DnsName(node)),
        _ => Err(ConfigError::bad_value(
            &["tls", "nodes", &at.to_string()],
            format!("{name:?} is no name of a node"),
            Some("name nodes as `aventine keys --node` did"),
        )),
    };
    let nodes = keys.nodes.into_iter().enumerate().map(node).collect::<Result<_, _>>()?;
    Ok(TlsFiles { ca: keys.ca, cert: keys.cert, key: keys.key, nodes })
}

fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().ok().filter(|a: &SocketAddr| a.port() != 0).ok_or_else(|| {
        ConfigError::bad_value(
            &["listen"],
            format!("{text:?} is not an IP address and a port"),
            Some("for example \"0.0.0.0:7400\" for every IPv4 address of the host, or \"[::]:7400\""),
        )
    })
}

fn parse_peers(peers: &[String]) -> Result<Vec<Address>, ConfigError> {
    if peers.is_empty() {
        return Err(ConfigError::bad_value(&["peer"], "no address is given", None));
    }
    let parse = |(at, peer): (usize, &String)| parse_peer(&["peer", &at.to_string()], peer);
    peers.iter().enumerate().map(parse).collect()
}

fn parse_peer(path: &[&str], text: &str) -> Result<Address, ConfigError> {
    text.parse().map_err(|e: AddressError| {
        ConfigError::bad_value(
            path,
            format!("{text:?}: {e}"),
            Some("for example \"standby.example:7400\", \"192.0.2.7:7400\" or \"[2001:db8::7]:7400\""),
        )
    })
}

/// `host:port`, the host a name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without brackets.
    pub(crate) host: String,
    /// Never 0.
    pub(crate) port: u16,
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("a port is missing after the host")]
    NoPort,
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    #[error("the host is missing")]
    NoHost,
    #[error("an IPv6 address must stand in brackets")]
    Brackets,
    #[error("the host is not a name or an IP address")]
    BadHost,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, after) = rest.split_once(']').ok_or(AddressError::Brackets)?;
                inside.parse::<Ipv6Addr>().map_err(|_| AddressError::BadHost)?;
                (inside, after.strip_prefix(':').ok_or(AddressError::NoPort)?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
                if host.contains(':') {
                    return Err(AddressError::Brackets);
                }
                (host, port)
            }
        };
        if host.is_empty() {
            return Err(AddressError::NoHost);
        }
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b)) {
            return Err(AddressError::BadHost);
        }
        let port = port.parse().ok().filter(|&p| p != 0).ok_or(AddressError::BadPort)?;
        Ok(Address { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for (text, host, port) in [
            ("standby.example:7400", "standby.example", 7400),
            ("192.0.2.7:1", "192.0.2.7", 1),
            ("[2001:db8::7]:65535", "2001:db8::7", 65535),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, Address { host: host.into(), port });
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, why) in [
            ("standby", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            (":7400", AddressError::NoHost),
            ("a:0", AddressError::BadPort),
            ("a:65536", AddressError::BadPort),
            ("a:", AddressError::BadPort),
            ("::1:7400", AddressError::Brackets),
            ("[::1", AddressError::Brackets),
            ("[a]:7400", AddressError::BadHost),
            ("a b:7400", AddressError::BadHost),
        ] {
            assert_eq!(text.parse::<Address>(), Err(why), "{text}");
        }
    }

    const TLS: &str = "tls = { ca = 'ca.pem', cert = 'node.pem', key = 'node.key' }";

    #[test]
    fn the_link_is_encrypted_or_plaintext_by_name() {
        let both = "listen = '0.0.0.0:7400'\npeer = 'standby:7400'";
        let parse = |more: &str| Settings::parse(&format!("{both}\n{more}"));
        assert!(parse("unsafe_plaintext = true").unwrap().tls.is_none());
        for text in [TLS.to_owned(), format!("{TLS}\nunsafe_plaintext = false")] {
            assert_eq!(parse(&text).unwrap().tls.unwrap().key, PathBuf::from("node.key"));
        }
        for text in ["", "unsafe_plaintext = false"] {
            let ConfigProblem::BadValue { message, help } = parse(text).unwrap_err().problem else {
                panic!("a wrong kind of problem");
            };
            assert!(message.contains("`tls`") && message.contains("`unsafe_plaintext = true`"), "{message}");
            assert!(help.unwrap().contains("`aventine keys`"));
        }
        let error = parse(&format!("{TLS}\nunsafe_plaintext = true")).unwrap_err();
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
            assert_eq!(Settings::parse(text).unwrap_err().path, path, "{text}");
        }
        let ConfigProblem::UnknownKey { key, .. } = Settings::parse("bind = 'x'").unwrap_err().problem else {
            panic!("a wrong kind of problem");
        };
        assert_eq!(key, "bind");
    }
}
