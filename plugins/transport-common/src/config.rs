//! What the keys of a plugin say of addresses and certificates.

use crate::tls::TlsFiles;
use crate::traffic::Options;
use aventine_api::ConfigError;
use aventine_api::schemars::JsonSchema;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The key `peer`.
#[derive(Deserialize, JsonSchema)]
#[schemars(crate = "aventine_api::schemars")]
#[serde(untagged, expecting = "an address, or a list with the addresses of both hosts")]
pub enum Peers {
    /// The other host's address.
    One(String),
    /// Both hosts' addresses: each dials the other's.
    Both(Vec<String>),
}

/// The key `tls`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub struct TlsKeys {
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
pub struct Settings {
    /// Where the standby listens.
    pub listen: Option<SocketAddr>,
    /// Where the primary connects to; where there are several, this host's own is left out.
    pub peers: Vec<Address>,
    /// `None` for plaintext.
    pub tls: Option<TlsFiles>,
    /// As if no key said anything, until they are set.
    pub options: Options,
}

impl Settings {
    /// Checks what the keys `listen`, `peer` and `tls` hold.
    pub fn new(
        listen: Option<&str>,
        peer: Option<Peers>,
        tls: Option<TlsKeys>,
    ) -> Result<Settings, ConfigError> {
        if listen.is_none() && peer.is_none() {
            return Err(ConfigError::bad_value(
                &[],
                "neither `listen` nor `peer` is given",
                Some("the standby needs `listen`, the primary `peer`; one file with both serves both hosts"),
            ));
        }
        let listen = listen.map(parse_listen).transpose()?;
        let peers = match peer {
            None => Vec::new(),
            Some(Peers::One(peer)) => vec![parse_peer(&["peer"], &peer)?],
            Some(Peers::Both(peers)) => parse_peers(&peers)?,
        };
        let tls = tls.map(parse_tls).transpose()?;
        Ok(Settings { listen, peers, tls, options: Options::default() })
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
pub struct Address {
    /// Without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing after the host.
    #[error("a port is missing after the host")]
    NoPort,
    /// Not from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// Nothing before the port.
    #[error("the host is missing")]
    NoHost,
    /// IPv6 without brackets.
    #[error("an IPv6 address must stand in brackets")]
    Brackets,
    /// Neither a name nor an address.
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
}
