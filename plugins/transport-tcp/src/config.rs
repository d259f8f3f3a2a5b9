//! The plugin's keys.

use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    listen: Option<String>,
    peer: Option<String>,
    #[serde(default)]
    unsafe_plaintext: bool,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the standby listens.
    pub(crate) listen: Option<SocketAddr>,
    /// Where the primary connects to.
    pub(crate) peer: Option<Address>,
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
        let peer = keys.peer.as_deref().map(parse_peer).transpose()?;
        if !keys.unsafe_plaintext {
            return Err(ConfigError::bad_value(
                &[],
                "this transport is not encrypted yet: anyone on the wire can read and change the guest's memory",
                Some(
                    "set `unsafe_plaintext = true` to accept that, on a network that only the two hosts use",
                ),
            ));
        }
        Ok(Settings { listen, peer })
    }
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

fn parse_peer(text: &str) -> Result<Address, ConfigError> {
    text.parse().map_err(|e: AddressError| {
        ConfigError::bad_value(
            &["peer"],
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

    #[test]
    fn plaintext_must_be_accepted_by_name() {
        let both = "listen = '0.0.0.0:7400'\npeer = 'standby:7400'";
        assert!(Settings::parse(&format!("{both}\nunsafe_plaintext = true")).is_ok());
        for text in [both.to_owned(), format!("{both}\nunsafe_plaintext = false")] {
            let ConfigProblem::BadValue { message, help } = Settings::parse(&text).unwrap_err().problem
            else {
                panic!("a wrong kind of problem");
            };
            assert!(message.contains("not encrypted") && message.contains("read and change"), "{message}");
            assert!(help.unwrap().contains("unsafe_plaintext = true"));
        }
    }

    #[test]
    fn bad_values_name_their_key() {
        for (text, path) in [
            ("listen = 'localhost:7400'", vec!["listen"]),
            ("listen = '0.0.0.0:0'", vec!["listen"]),
            ("peer = 'standby'", vec!["peer"]),
            ("unsafe_plaintext = true", vec![]),
        ] {
            assert_eq!(Settings::parse(text).unwrap_err().path, path, "{text}");
        }
        let ConfigProblem::UnknownKey { key, .. } = Settings::parse("bind = 'x'").unwrap_err().problem else {
            panic!("a wrong kind of problem");
        };
        assert_eq!(key, "bind");
    }
}
