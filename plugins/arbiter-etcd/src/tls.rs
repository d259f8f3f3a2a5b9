//! Who an endpoint may be, and who this host is to it.

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// The files of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    /// Certificate and private key of this host.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("Cannot read {}, the `{role}` of [arbiter]", path.display())]
    Read { role: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "The private key {} is open to other users (mode {mode:03o}); run: chmod 600 {}",
        path.display(), path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("{}, the `{role}` of [arbiter], is not PEM with what it should hold", path.display())]
    Pem { role: &'static str, path: PathBuf, source: pem::Error },
    #[error("The private key {} cannot be used", path.display())]
    Key { path: PathBuf, source: ureq::Error },
    #[error("{} is no certificate that can be a CA", path.display())]
    Ca { path: PathBuf, source: rustls::Error },
    #[error("The certificate {} and the private key {} cannot be used together", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// What the files hold, checked.
pub(crate) struct Identity {
    provider: Arc<CryptoProvider>,
    roots: RootCerts,
    own: Option<ClientCert>,
}

impl Identity {
    pub(crate) fn into_tls_config(self) -> TlsConfig {
        TlsConfig::builder()
            .unversioned_rustls_crypto_provider(self.provider)
            .root_certs(self.roots)
            .client_cert(self.own)
            .build()
    }
}

/// Reads the files; relative paths are meant from `dir`.
pub(crate) fn load(files: &TlsFiles, dir: &Path) -> Result<Identity, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let path = dir.join(&files.ca);
    let authorities = certificates("ca", &path)?;
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots.add(authority.clone()).map_err(|source| TlsError::Ca { path: path.clone(), source })?;
    }
    let own = match &files.own {
        Some((cert, key)) => Some(load_own(&dir.join(cert), &dir.join(key), roots, &provider)?),
        None => None,
    };
    Ok(Identity { provider, roots: RootCerts::new_with_certs(&for_ureq(&authorities)), own })
}

fn load_own(
    cert: &Path,
    key: &Path,
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientCert, TlsError> {
    let chain = certificates("cert", cert)?;
    let (secret, own) = read_key(key)?;
    let own = ClientCert::new_with_certs(&for_ureq(&chain), own);
    // ureq would panic at the first claim.
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, secret))
        .map_err(|source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source })?;
    Ok(own)
}

fn for_ureq(certificates: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    certificates.iter().map(|c| Certificate::from_der(c).to_owned()).collect()
}

/// At least one.
fn certificates(role: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = fs::read(path).map_err(|source| TlsError::Read { role, path: path.to_owned(), source })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.and_then(|f| if f.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(f) });
    found.map_err(|source| TlsError::Pem { role, path: path.to_owned(), source })
}

/// The private key, once for the check and once for use.
fn read_key(path: &Path) -> Result<(PrivateKeyDer<'static>, PrivateKey<'static>), TlsError> {
    let mut bytes = Vec::new();
    let mode = File::open(path).and_then(|mut file| {
        let mode = file.metadata()?.mode() & 0o777;
        file.read_to_end(&mut bytes).map(|_| mode)
    });
    let mode = mode.map_err(|source| TlsError::Read { role: "key", path: path.to_owned(), source })?;
    if mode & 0o077 != 0 {
        return Err(TlsError::Open { path: path.to_owned(), mode });
    }
    let secret = PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| TlsError::Pem {
        role: "key",
        path: path.to_owned(),
        source,
    })?;
    let own =
        PrivateKey::from_pem(&bytes).map_err(|source| TlsError::Key { path: path.to_owned(), source })?;
    Ok((secret, own))
}
