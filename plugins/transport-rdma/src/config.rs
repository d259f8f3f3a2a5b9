//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use aventine_transport_common::{Peers, Settings, TlsKeys};
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Keys {
    /// Where the standby listens: `10.0.0.2:7400`, an address of its RDMA device.
    listen: Option<String>,
    /// The other host as `HOST:PORT`, or a list that names both hosts; addresses of their RDMA devices.
    peer: Option<Peers>,
    /// How the hosts prove to each other who they are; `aventine keys` makes the files.
    tls: TlsKeys,
    /// The guest's memory crosses the network unencrypted; only the handshake does not. Must be `true`.
    #[schemars(required)]
    unsafe_unencrypted_payload: Option<bool>,
}

/// Reads the keys.
pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let path: &[&str] = match keys.unsafe_unencrypted_payload {
        Some(true) => return Settings::new(keys.listen.as_deref(), keys.peer, Some(keys.tls)),
        Some(false) => &["unsafe_unencrypted_payload"],
        None => &[],
    };
    Err(ConfigError::bad_value(
        path,
        "RDMA carries the guest's memory unencrypted, and that is not accepted here",
        Some(
            "`unsafe_unencrypted_payload = true` accepts that whoever is on this network can read and change it; transport \
             `tcp` encrypts",
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    const TLS: &str = "tls = { ca = 'ca.pem', cert = 'node.pem', key = 'node.key' }";

    #[test]
    fn what_is_not_encrypted_must_be_accepted_by_name() {
        let both = format!("listen = '10.0.0.2:7400'\npeer = 'standby:7400'\n{TLS}");
        assert!(parse(&format!("{both}\nunsafe_unencrypted_payload = true")).unwrap().tls.is_some());
        for (more, path) in
            [("", vec![]), ("unsafe_unencrypted_payload = false", vec!["unsafe_unencrypted_payload"])]
        {
            let error = parse(&format!("{both}\n{more}")).unwrap_err();
            assert_eq!(error.path, path);
            let ConfigProblem::BadValue { help, .. } = error.problem else { panic!("another problem") };
            assert!(help.unwrap().contains("can read and change"));
        }
    }

    #[test]
    fn nobody_is_trusted_without_certificates() {
        let error = parse("peer = 'a:1'\nunsafe_unencrypted_payload = true").unwrap_err();
        assert!(matches!(&error.problem, ConfigProblem::MissingKey { key, .. } if key == "tls"), "{error}");
    }
}
