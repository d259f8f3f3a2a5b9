//! The plugin's own keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Bytes that writes may take in memory where the configuration does not say.
const DEFAULT_BUFFER: u64 = 256 << 20;
/// The least lets the largest request of a guest pass without stopping at each.
const BUFFER_RANGE: RangeInclusive<u64> = 16 << 20..=1 << 40;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
#[schemars(extend("oneOf" = [{ "required": ["image"] }, { "required": ["spec"] }]))]
pub(crate) struct Keys {
    /// The raw image. The primary's must exist; a standby's is made, or overwritten.
    image: Option<PathBuf>,
    /// The same with a channel of its own: `remus:HOST:PORT|aio:PATH`.
    spec: Option<String>,
    /// Memory for writes on their way, the same on both hosts; 256MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    buffer: Option<String>,
    /// Whether reads and writes go past the page cache of this host, where the image allows that; true if not set.
    direct: Option<bool>,
    /// Where a guest's flush is made good before its epoch can commit; `flush` if not set.
    #[serde(default)]
    durable: Durable,
    /// Starts the guest from this image though it is outdated, once: the name is in the error that says so.
    accept_outdated: Option<String>,
}

/// Where a guest's flush is made good before its epoch can commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) enum Durable {
    /// On stable storage of this side: survives the loss of both hosts.
    #[default]
    Flush,
    /// In the memory of both sides, while the guest is protected: faster, and lost with both hosts.
    Memory,
}

/// The checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The image, perhaps relative to the configuration file.
    pub(crate) image: PathBuf,
    /// `host:port` of the standby where the disk has a channel of its own.
    pub(crate) route: Option<String>,
    /// Bytes that writes on their way may take in memory, on each side.
    pub(crate) buffer: usize,
    /// Whether whole blocks go past the page cache where the image allows that.
    pub(crate) direct: bool,
    pub(crate) durable: Durable,
    /// The name of the state of metadata that the guest is started from though it is outdated.
    pub(crate) accept_outdated: Option<String>,
}

/// Reads the plugin's configuration text.
pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let buffer =
        keys.buffer.map_or(Ok(DEFAULT_BUFFER), |text| u64::parse_key(&["buffer"], &text, &BUFFER_RANGE))?;
    let (image, route) = match (keys.image, keys.spec) {
        (Some(image), None) if image.as_os_str().is_empty() => {
            return Err(ConfigError::bad_value(&["image"], "`image` is empty", None));
        }
        (Some(image), None) => (image, None),
        (None, Some(text)) => spec(&text).map(|(route, image)| (image, Some(route)))?,
        (Some(_), Some(_)) => {
            let help = "`image` replicates over the shared transport, `spec` over a connection of its own";
            return Err(ConfigError::bad_value(
                &["spec"],
                "`image` and `spec` exclude each other",
                Some(help),
            ));
        }
        (None, None) => {
            let help = "write `image = \"PATH\"`, or `spec = \"remus:HOST:PORT|aio:PATH\"`";
            return Err(ConfigError::bad_value(&[], "the disk has neither `image` nor `spec`", Some(help)));
        }
    };
    let accept_outdated = keys.accept_outdated;
    if accept_outdated.as_ref().is_some_and(|id| id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        let help =
            "the name is in the error of a guest that is not started from an outdated image; 32 digits";
        return Err(ConfigError::bad_value(
            &["accept_outdated"],
            "`accept_outdated` does not name a state of an image",
            Some(help),
        ));
    }
    let (buffer, direct) = (buffer as usize, keys.direct.unwrap_or(true));
    Ok(Settings { image, route, buffer, direct, durable: keys.durable, accept_outdated })
}

/// `remus:HOST:PORT|aio:PATH`, perhaps behind the `tap:` or `tap2:` of a Xen configuration.
fn spec(text: &str) -> Result<(String, PathBuf), ConfigError> {
    const FORM: &str = "the form is `remus:HOST:PORT|aio:PATH`";
    let wrong = |message: String| ConfigError::bad_value(&["spec"], message, Some(FORM));
    let bare = text.strip_prefix("tap:").or_else(|| text.strip_prefix("tap2:")).unwrap_or(text);
    let rest =
        bare.strip_prefix("remus:").ok_or_else(|| wrong(format!("`{bare}` does not begin with `remus:`")))?;
    let (address, image) =
        rest.split_once('|').ok_or_else(|| wrong(format!("there is no `|` behind the address `{rest}`")))?;
    let path = image.strip_prefix("aio:").ok_or_else(|| {
        wrong(format!("`{image}` does not begin with `aio:`, the only kind of image there is"))
    })?;
    if path.is_empty() {
        return Err(wrong("there is no path behind `aio:`".to_owned()));
    }
    check_address(address).map_err(wrong)?;
    Ok((address.to_owned(), PathBuf::from(path)))
}

fn check_address(address: &str) -> Result<(), String> {
    let port = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) =
                rest.split_once(']').ok_or_else(|| format!("the bracket in `{address}` is not closed"))?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(format!("`{host}` is not an IPv6 address"));
            }
            rest.strip_prefix(':').ok_or_else(|| format!("there is no port behind `[{host}]`"))?
        }
        None => {
            let (host, port) =
                address.rsplit_once(':').ok_or_else(|| format!("there is no port behind `{address}`"))?;
            if host.is_empty() {
                return Err("there is no host behind `remus:`".to_owned());
            }
            if host.contains(':') {
                return Err(format!("`{address}` has too many colons; an IPv6 address stands in brackets"));
            }
            if let Some(c) = host.chars().find(|c| !c.is_alphanumeric() && !matches!(c, '.' | '-' | '_')) {
                return Err(format!("host `{host}` has a `{c}` in it"));
            }
            port
        }
    };
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(format!("`{port}` is not a port between 1 and 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    fn problem(text: &str) -> (String, String) {
        let error = parse(text).unwrap_err();
        (error.path.join("."), error.to_string())
    }

    fn settings_of(image: &str, route: Option<&str>, buffer: usize) -> Settings {
        let (image, route) = (image.into(), route.map(str::to_owned));
        Settings { image, route, buffer, direct: true, durable: Durable::Flush, accept_outdated: None }
    }

    #[test]
    fn both_forms_are_understood() {
        let settings = parse("image = \"disks/web.img\"").unwrap();
        let expected = settings_of("disks/web.img", None, 256 << 20);
        assert_eq!(settings, expected);
        for (spec, route, image) in [
            ("remus:backup:9000|aio:/dev/foo", "backup:9000", "/dev/foo"),
            ("tap:remus:backup.example:9000|aio:web.img", "backup.example:9000", "web.img"),
            ("tap2:remus:192.0.2.7:1|aio:/a|b:c", "192.0.2.7:1", "/a|b:c"),
            ("remus:[2001:db8::1]:65535|aio:/x", "[2001:db8::1]:65535", "/x"),
        ] {
            let settings = parse(&format!("spec = \"{spec}\"\nbuffer = \"64MiB\"")).unwrap();
            let expected = settings_of(image, Some(route), 64 << 20);
            assert_eq!(settings, expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        for (spec, says) in [
            ("aio:/dev/foo", "does not begin with `remus:`"),
            ("remus:backup:9000", "there is no `|`"),
            ("remus:backup:9000|vhd:/x", "`vhd:/x` does not begin with `aio:`"),
            ("remus:backup:9000|aio:", "no path"),
            ("remus:backup|aio:/x", "no port behind `backup`"),
            ("remus::9000|aio:/x", "no host"),
            ("remus:backup:0|aio:/x", "`0` is not a port"),
            ("remus:backup:+9|aio:/x", "`+9` is not a port"),
            ("remus:backup:65536|aio:/x", "`65536` is not a port"),
            ("remus:2001:db8::1:9000|aio:/x", "in brackets"),
            ("remus:[2001:db8::1|aio:/x", "not closed"),
            ("remus:[backup]:9000|aio:/x", "`backup` is not an IPv6 address"),
            ("remus:[::1]9000|aio:/x", "no port behind `[::1]`"),
            ("remus:back up:9000|aio:/x", "host `back up` has a ` ` in it"),
        ] {
            let (path, message) = problem(&format!("spec = \"{spec}\""));
            assert_eq!(path, "spec");
            assert!(message.contains(says), "{spec}: {message}");
        }
        assert!(problem("").1.contains("neither `image` nor `spec`"));
        assert!(problem("image = 'a'\nspec = 'remus:a:1|aio:b'").1.contains("exclude each other"));
        assert_eq!(problem("image = ''").0, "image");
        for size in ["lots", "15MiB", "-1MiB", "64MB", "1025GiB", "99999999999999999999", "99999999999GiB"] {
            assert_eq!(problem(&format!("image = 'a'\nbuffer = '{size}'")).0, "buffer", "{size}");
        }
        let id = "0123456789abcdef0123456789abcdef";
        let settings = parse(&format!("image = 'a'\ndurable = 'memory'\naccept_outdated = '{id}'")).unwrap();
        assert_eq!((settings.durable, settings.accept_outdated.as_deref()), (Durable::Memory, Some(id)));
        assert!(problem("image = 'a'\ndurable = 'never'").1.contains("flush"));
        assert!(!parse("image = 'a'\ndirect = false").unwrap().direct);
        for id in ["", "yes", &id[1..], &id.replace('0', "g")] {
            assert_eq!(
                problem(&format!("image = 'a'\naccept_outdated = '{id}'")).0,
                "accept_outdated",
                "{id}"
            );
        }
        let unknown = parse("image = 'a'\nimages = 'b'").unwrap_err();
        assert!(matches!(unknown.problem, ConfigProblem::UnknownKey { .. }));
    }
}
