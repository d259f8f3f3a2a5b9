//! The plugin's keys.

use crate::tls::TlsFiles;
use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::path::PathBuf;
use ureq::http::Uri;

const DEFAULT_PREFIX: &str = "/aventine/";
const MAX_PREFIX: usize = 256;
/// Each may use up its time limit before a claim is answered.
const MAX_ENDPOINTS: usize = 9;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Keys {
    /// Members of the cluster: `https://10.0.0.1:2379`.
    endpoints: Vec<String>,
    /// What the names of the keys begin with; `/aventine/` if not set.
    prefix: Option<String>,
    /// Certificate of the CA that the cluster's certificates are from.
    ca: Option<PathBuf>,
    /// This host's certificate.
    cert: Option<PathBuf>,
    /// This host's private key.
    key: Option<PathBuf>,
    /// Allows `http`: whoever is on the wire can then forge a verdict.
    #[serde(default)]
    unsafe_plaintext: bool,
}

/// A checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Addresses such as `https://10.0.0.1:2379`, at least one.
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    /// There if an endpoint has `https`.
    pub(crate) tls: Option<TlsFiles>,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let Keys { endpoints, prefix, ca, cert, key, unsafe_plaintext } = parse_config(text)?;
        if !(1..=MAX_ENDPOINTS).contains(&endpoints.len()) {
            let message = format!("there are {} endpoints", endpoints.len());
            let help = format!("name 1 to {MAX_ENDPOINTS} members of the cluster");
            return Err(ConfigError::bad_value(&["endpoints"], message, Some(&help)));
        }
        let mut checked = Vec::with_capacity(endpoints.len());
        for (at, endpoint) in endpoints.iter().enumerate() {
            let wrong = |why: &str| {
                let help = Some("for example \"https://10.0.0.1:2379\"");
                ConfigError::bad_value(&["endpoints", &at.to_string()], format!("{endpoint:?} {why}"), help)
            };
            let endpoint = parse_endpoint(endpoint).map_err(wrong)?;
            if checked.contains(&endpoint) {
                return Err(wrong("is there twice"));
            }
            if endpoint.starts_with("http:") && !unsafe_plaintext {
                let help = "use https, or say `unsafe_plaintext = true`: whoever is on the wire can then forge a verdict, \
                            and have both hosts own the guest";
                let message = format!("{endpoint:?} is not encrypted");
                return Err(ConfigError::bad_value(&["endpoints", &at.to_string()], message, Some(help)));
            }
            checked.push(endpoint);
        }
        let prefix = prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
        if !(1..=MAX_PREFIX).contains(&prefix.len()) {
            let message = format!("the prefix has {} bytes", prefix.len());
            let help = format!("use 1 to {MAX_PREFIX}, or leave the key out for \"{DEFAULT_PREFIX}\"");
            return Err(ConfigError::bad_value(&["prefix"], message, Some(&help)));
        }
        let is_https = checked.iter().any(|e| e.starts_with("https"));
        Ok(Settings { endpoints: checked, prefix, tls: parse_tls(is_https, ca, cert, key)? })
    }
}

/// Scheme, host and port, without a slash at the end.
fn parse_endpoint(text: &str) -> Result<String, &'static str> {
    let uri: Uri = text.parse().map_err(|_| "is not an address")?;
    let scheme = uri.scheme_str().filter(|s| ["http", "https"].contains(s));
    let scheme = scheme.ok_or("begins with neither https:// nor http://")?;
    let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("has a user, which is not supported");
    }
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err("has no port");
    }
    if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
        return Err("has something behind the port");
    }
    Ok(format!("{scheme}://{authority}"))
}

fn parse_tls(
    is_https: bool,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<TlsFiles>, ConfigError> {
    for (name, file) in [("ca", &ca), ("cert", &cert), ("key", &key)] {
        let Some(file) = file else { continue };
        if file.as_os_str().is_empty() {
            return Err(ConfigError::bad_value(&[name], "no file is named", None));
        }
        if !is_https {
            let help = Some("write https:// in `endpoints`, or remove the key");
            let message = format!("`{name}` is of no use: no endpoint has https");
            return Err(ConfigError::bad_value(&[name], message, help));
        }
    }
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            let help = Some("name its private key in `key`");
            return Err(ConfigError::bad_value(&["cert"], "there is `cert` without `key`", help));
        }
        (None, Some(_)) => {
            let help = Some("name its certificate in `cert`");
            return Err(ConfigError::bad_value(&["key"], "there is `key` without `cert`", help));
        }
    };
    match ca {
        Some(ca) => Ok(Some(TlsFiles { ca, own })),
        None if is_https => {
            let help =
                Some("name the certificate of the CA that issued those of the endpoints: ca = \"ca.pem\"");
            Err(ConfigError::bad_value(&["endpoints"], "an endpoint has https, and there is no `ca`", help))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn what_is_there_is_understood() {
        let plain = "unsafe_plaintext = true\nendpoints = ['http://etcd.example:2379/', 'http://[::1]:1']";
        let plain = Settings::parse(plain).unwrap();
        let endpoints = vec!["http://etcd.example:2379".to_owned(), "http://[::1]:1".to_owned()];
        assert_eq!(plain, Settings { endpoints, prefix: "/aventine/".into(), tls: None });
        let text = "endpoints = ['https://10.0.0.1:2379']\nprefix = 'p'\nca = 'ca.pem'";
        let tls = |text: &str| Settings::parse(text).unwrap().tls.unwrap();
        assert_eq!(tls(text), TlsFiles { ca: "ca.pem".into(), own: None });
        let own = Some(("a".into(), "b".into()));
        let files = TlsFiles { ca: "ca.pem".into(), own };
        assert_eq!(tls(&format!("{text}\ncert = 'a'\nkey = 'b'")), files);
    }

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        let one = "endpoints = ['http://a:1']";
        let many = format!("endpoints = {:?}", (1..=10).map(|n| format!("http://a:{n}")).collect::<Vec<_>>());
        let long = format!("{one}\nprefix = '{}'", "x".repeat(257));
        let refused = Settings::parse(one).unwrap_err();
        assert!(refused.to_string().contains("is not encrypted"), "{refused}");
        for (text, path, says) in [
            ("endpoints = []", vec!["endpoints"], "0 endpoints"),
            (&many, vec!["endpoints"], "10 endpoints"),
            ("endpoints = 'http://a:1'", vec!["endpoints"], "invalid type"),
            ("endpoints = ['http://a:1', 'a:1']", vec!["endpoints", "1"], "neither"),
            ("endpoints = ['ftp://a:1']", vec!["endpoints", "0"], "neither"),
            ("endpoints = ['http://a']", vec!["endpoints", "0"], "no port"),
            ("endpoints = ['http://a:0']", vec!["endpoints", "0"], "no port"),
            ("endpoints = ['http://a b:1']", vec!["endpoints", "0"], "not an address"),
            ("endpoints = ['http://:1']", vec!["endpoints", "0"], ""),
            ("endpoints = ['http://me@a:1']", vec!["endpoints", "0"], "has a user"),
            ("endpoints = ['http://a:1/v3']", vec!["endpoints", "0"], "behind the port"),
            ("endpoints = ['http://a:1/?x']", vec!["endpoints", "0"], "behind the port"),
            ("endpoints = ['http://a:1', 'http://a:1/']", vec!["endpoints", "1"], "twice"),
            ("endpoints = ['http://a:1']\nprefix = ''", vec!["prefix"], "0 bytes"),
            (&long, vec!["prefix"], "257 bytes"),
            ("endpoints = ['https://a:1']", vec!["endpoints"], "no `ca`"),
            ("endpoints = ['http://a:1']\nca = 'x'", vec!["ca"], "no use"),
            ("endpoints = ['https://a:1']\nca = ''", vec!["ca"], "no file"),
            ("endpoints = ['https://a:1']\nca = 'x'\ncert = 'y'", vec!["cert"], "without `key`"),
            ("endpoints = ['https://a:1']\nca = 'x'\nkey = 'y'", vec!["key"], "without `cert`"),
        ] {
            let error = Settings::parse(&format!("unsafe_plaintext = true\n{text}")).unwrap_err();
            assert_eq!(error.path, path, "{text}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "endpoints".into() });
    }
}
