//! `aventine keys`: a CA of one's own, and the keys with which two hosts know each other.
//!
//! ```text
//! DIR/          0700
//!   ca.key      0600  signs node certificates; needed here alone, and worth keeping off the hosts
//!   ca.pem            what every host checks the others with
//!   NAME.key    0600  a node's own key; goes to that host and nowhere else
//!   NAME.pem          its certificate: valid for either side of a link, names the node NAME
//! ```
//! Nothing that exists is overwritten. A CA that is there signs further nodes; its name is made from its key, so that
//! `ca.key` alone says what its certificates must be issued by.

use crate::cli::Keys;
use crate::exit::Exit;
use crate::output::{print, tell_error};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why keys could not be made.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(
        "{0:?} cannot name a node: use a host name of at most 63 letters, digits, `-` and inner dots, not `ca`"
    )]
    Name(String),
    #[error("The node {0:?} is named twice")]
    Twice(String),
    #[error("Could not make the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("The directory {} is open to other users (mode {mode:03o}); run: chmod 700 {}", path.display(), path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{} exists already and nothing is overwritten; remove it first, or use another name", .0.display())]
    Exists(PathBuf),
    #[error("{} is there and {} is not; a CA needs both", there.display(), missing.display())]
    HalfCa { there: PathBuf, missing: PathBuf },
    #[error("Could not read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("Could not write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is no private key", path.display())]
    BadKey { path: PathBuf, source: rcgen::Error },
    #[error(
        "{} was not made by `aventine keys` from {}; sign node certificates with the tools it was made with",
        cert.display(), key.display()
    )]
    ForeignCa { cert: PathBuf, key: PathBuf },
    #[error("Could not make a certificate")]
    Make(#[from] rcgen::Error),
}

#[derive(Serialize)]
struct Made {
    ca: PathBuf,
    /// Whether the CA is new, too.
    ca_made: bool,
    days: u32,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    cert: PathBuf,
    key: PathBuf,
}

/// Makes what is asked for and says what to do with it.
pub(crate) fn keys(args: &Keys) -> Exit {
    match make(args) {
        Ok(made) => {
            match args.json {
                true => print(serde_json::to_string(&made).unwrap_or_default()),
                false => print(advice(&made)),
            }
            Exit::Done
        }
        Err(error) => {
            tell_error(&error);
            match error {
                KeysError::Name(_) | KeysError::Twice(_) => Exit::Usage,
                _ => Exit::Error,
            }
        }
    }
}

fn make(args: &Keys) -> Result<Made, KeysError> {
    let dir = args.dir.as_path();
    for (at, name) in args.node.iter().enumerate() {
        if !is_name(name) {
            return Err(KeysError::Name(name.clone()));
        }
        if args.node[..at].iter().any(|other| other.eq_ignore_ascii_case(name)) {
            return Err(KeysError::Twice(name.clone()));
        }
    }
    private(dir)?;
    let nodes: Vec<_> = args
        .node
        .iter()
        .map(|name| Node {
            name: name.clone(),
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        })
        .collect();
    // All of them are looked for before the first is made: either everything comes into being or nothing.
    if let Some(path) = nodes.iter().flat_map(|n| [&n.cert, &n.key]).find(|p| p.symlink_metadata().is_ok()) {
        return Err(KeysError::Exists(path.clone()));
    }
    let (issuer, ca_made) = authority(dir, args.days)?;
    for node in &nodes {
        let key = KeyPair::generate()?;
        let certificate = node_params(&node.name, args.days)?.signed_by(&key, &issuer)?;
        create(&node.key, 0o600, &key.serialize_pem())?;
        create(&node.cert, 0o644, &certificate.pem())?;
    }
    Ok(Made { ca: dir.join("ca.pem"), ca_made, days: args.days, nodes })
}

/// A name is a file's name and a certificate's DNS name.
fn is_name(name: &str) -> bool {
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
        && name.len() <= 63
        && !name.ends_with('.')
        && !name.eq_ignore_ascii_case("ca")
}

/// Keys of a run that measures TLS: the node `bench`.
pub(crate) fn make_for_bench(dir: &Path) -> Result<aventine_bench::transport::Keys, Exit> {
    let args = Keys { dir: dir.join("keys"), node: vec!["bench".to_owned()], days: 1, json: false };
    match make(&args) {
        Ok(Made { ca, mut nodes, .. }) => {
            let Node { cert, key, .. } = nodes.remove(0);
            Ok(aventine_bench::transport::Keys { ca, cert, key })
        }
        Err(error) => {
            tell_error(&error);
            Err(Exit::Error)
        }
    }
}

fn private(dir: &Path) -> Result<(), KeysError> {
    let failed = |source| KeysError::Directory { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    match dir.metadata().map_err(failed)?.mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(KeysError::Open { path: dir.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// The CA of the directory, made if there is none; and whether it was made.
fn authority(dir: &Path, days: u32) -> Result<(Issuer<'static, KeyPair>, bool), KeysError> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    match (is_there(&cert), is_there(&key)) {
        (true, true) => Ok((known_authority(cert, key, days)?, false)),
        (false, false) => {
            let pair = KeyPair::generate()?;
            let params = ca_params(&pair, days)?;
            let certificate = params.self_signed(&pair)?;
            create(&key, 0o600, &pair.serialize_pem())?;
            create(&cert, 0o644, &certificate.pem())?;
            Ok((Issuer::new(params, pair), true))
        }
        (true, false) => Err(KeysError::HalfCa { there: cert, missing: key }),
        (false, true) => Err(KeysError::HalfCa { there: key, missing: cert }),
    }
}

fn known_authority(cert: PathBuf, key: PathBuf, days: u32) -> Result<Issuer<'static, KeyPair>, KeysError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| KeysError::Read { path: path.to_owned(), source })
    };
    let pair = match KeyPair::from_pem(&read(&key)?) {
        Ok(pair) => pair,
        Err(source) => return Err(KeysError::BadKey { path: key, source }),
    };
    let params = ca_params(&pair, days)?;
    let der = CertificateDer::from_pem_slice(read(&cert)?.as_bytes());
    let holds = |part: &[u8]| der.iter().any(|der| der.windows(part.len()).any(|window| window == part));
    if !holds(pair.public_key_raw()) || !holds(ca_name(&pair).as_bytes()) {
        return Err(KeysError::ForeignCa { cert, key });
    }
    Ok(Issuer::new(params, pair))
}

/// A CA's name holds a part of its key: two CAs are never taken for each other.
fn ca_name(key: &KeyPair) -> String {
    let id: String = key.public_key_raw().iter().skip(1).take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("Aventine CA {id}")
}

fn ca_params(key: &KeyPair, days: u32) -> Result<CertificateParams, KeysError> {
    let mut params = common_params(Vec::new(), &ca_name(key), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn node_params(name: &str, days: u32) -> Result<CertificateParams, KeysError> {
    let mut params = common_params(vec![name.to_owned()], name, days)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // The sides change places after a takeover.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn common_params(names: Vec<String>, name: &str, days: u32) -> Result<CertificateParams, KeysError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    // From yesterday on: the other host's clock may be behind.
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + (now + DAY * days);
    Ok(params)
}

/// Writes a new file, or nothing where there is one already.
fn create(path: &Path, mode: u32, text: &str) -> Result<(), KeysError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    made.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists(path.to_owned()),
        _ => KeysError::Write { path: path.to_owned(), source },
    })
}

fn advice(made: &Made) -> String {
    let dir = made.ca.parent().unwrap_or(Path::new(""));
    let mut text = match made.ca_made {
        true => format!("Made a CA and {} in {}.\n", count(made.nodes.len()), dir.display()),
        false => format!("Made {} in {}, signed by the CA there.\n", count(made.nodes.len()), dir.display()),
    };
    text.push_str(
        "\nCopy to each host, beside its configuration file, as root and over a connection you trust:\n",
    );
    for node in &made.nodes {
        text.push_str(&format!(
            "  {}:\n    {} as ca.pem\n    {} as node.pem\n    {} as node.key (mode 600)\n",
            node.name,
            made.ca.display(),
            node.cert.display(),
            node.key.display()
        ));
    }
    let names: Vec<_> = made.nodes.iter().map(|node| format!("{:?}", node.name)).collect();
    text.push_str(&format!(
        "\nIn the configuration, the same on all of them:\n  [transport]\n  plugin = \"tcp\"\n  \
         tls = {{ ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }}\n\
         To let in these nodes alone, and none other of this CA, add to `tls`: nodes = [{}]\n\n\
         The certificates are valid for {} days. Keep {} here and off the hosts: whoever has it can make a node.",
        names.join(", "),
        made.days,
        dir.join("ca.key").display()
    ));
    text
}

fn count(nodes: usize) -> String {
    if nodes == 1 { "the keys of one node".into() } else { format!("the keys of {nodes} nodes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_files_and_certificates() {
        for good in ["a", "alpha", "host-1", "host_1.example"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "ca",
            "CA",
            "a/b",
            "..",
            ".a",
            "a.",
            "a b",
            "-a",
            "a-",
            "10",
            "10.0.0.1",
            "ä",
            &"x".repeat(64),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
