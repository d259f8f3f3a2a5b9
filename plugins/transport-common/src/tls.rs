//! Who the two hosts are to each other: the certificates of both, and how the other's is checked.
//!
//! - TLS 1.3 and nothing older; no early data, no tickets, no resumption: each connection proves both sides anew, and
//!   nothing recorded on one is of use on another.
//! - Both sides show a certificate. It counts when the configured CA issued it, it is valid now, and it is meant for
//!   the side that shows it (extended key usage). Addresses and host names play no part: a standby may move.
//! - Where `nodes` is given, the certificate must also carry one of these names. It bounds what the key of some other
//!   node of the same CA is good for.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The `tls` key, checked as far as that goes without looking at files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// The names that may be at the other end; any of the CA's when empty.
    pub(crate) nodes: Vec<ServerName<'static>>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("Cannot read {}, the `{role}` of `tls` in [transport]; `aventine keys` makes one", path.display())]
    Read { role: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "The private key {} is open to other users (mode {mode:03o}); run: chmod 600 {}",
        path.display(), path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("{}, the `{role}` of `tls` in [transport], holds no {wanted}", path.display())]
    Without { role: &'static str, path: PathBuf, wanted: &'static str },
    #[error(
        "{}, the `cert` of `tls` in [transport], holds a private key and no certificate; are `cert` and `key` \
         exchanged?",
        .0.display()
    )]
    Exchanged(PathBuf),
    #[error("{}, the `{role}` of `tls` in [transport], is damaged", path.display())]
    Damaged { role: &'static str, path: PathBuf, source: pem::Error },
    #[error("{} is no certificate that can be a CA", path.display())]
    Ca { path: PathBuf, source: Error },
    #[error("{} cannot be used to check the other host", path.display())]
    Verifier { path: PathBuf, source: VerifierBuilderError },
    #[error("The certificate {} and the private key {} do not belong together", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf },
    #[error("The certificate {} and the private key {} cannot be used", cert.display(), key.display())]
    Unusable { cert: PathBuf, key: PathBuf, source: Error },
}

/// Both roles of this host.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files; relative paths are meant from `dir`.
    pub(crate) fn load(files: &TlsFiles, dir: &Path) -> Result<Tls, TlsError> {
        let (ca, cert, key) = (dir.join(&files.ca), dir.join(&files.cert), dir.join(&files.key));
        let roots = Arc::new(read_roots(&ca)?);
        let chain = read_chain(&cert)?;
        let secret = read_key(&key)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(NodeVerifier::new(roots, files.nodes.clone(), &provider, &ca)?);
        let unusable = |source| match source {
            Error::InconsistentKeys(_) => TlsError::Pair { cert: cert.clone(), key: key.clone() },
            source => TlsError::Unusable { cert: cert.clone(), key: key.clone(), source },
        };
        let only = &[&TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(only)
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(chain.clone(), secret.clone_key())
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(only)
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(unusable)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn read_file(role: &'static str, path: &Path) -> Result<(Vec<u8>, u32), TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| {
            let mode = file.metadata()?.mode() & 0o777;
            file.read_to_end(&mut bytes).map(|_| mode)
        })
        .map(|mode| (bytes, mode))
        .map_err(|source| TlsError::Read { role, path: path.to_owned(), source })
}

fn certificates(
    role: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    found.map_err(|source| TlsError::Damaged { role, path: path.to_owned(), source })
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let (bytes, _) = read_file("ca", path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", path, &bytes)? {
        roots.add(certificate).map_err(|source| TlsError::Ca { path: path.to_owned(), source })?;
    }
    if roots.is_empty() {
        return Err(TlsError::Without { role: "ca", path: path.to_owned(), wanted: "certificate" });
    }
    Ok(roots)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let (bytes, _) = read_file("cert", path)?;
    let chain = certificates("cert", path, &bytes)?;
    if !chain.is_empty() {
        return Ok(chain);
    }
    Err(match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) => TlsError::Exchanged(path.to_owned()),
        Err(_) => TlsError::Without { role: "cert", path: path.to_owned(), wanted: "certificate" },
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (bytes, mode) = read_file("key", path)?;
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) if mode & 0o077 != 0 => Err(TlsError::Open { path: path.to_owned(), mode }),
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            Err(TlsError::Without { role: "key", path: path.to_owned(), wanted: "private key" })
        }
        Err(source) => Err(TlsError::Damaged { role: "key", path: path.to_owned(), source }),
    }
}

/// Decides whether a certificate is that of a node.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    nodes: Vec<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Checks a client's certificate but for its name.
    clients: Arc<dyn ClientCertVerifier>,
}

impl NodeVerifier {
    fn new(
        roots: Arc<RootCertStore>,
        nodes: Vec<ServerName<'static>>,
        provider: &Arc<CryptoProvider>,
        ca: &Path,
    ) -> Result<NodeVerifier, TlsError> {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|source| TlsError::Verifier { path: ca.to_owned(), source })?;
        let algorithms = provider.signature_verification_algorithms;
        Ok(NodeVerifier { roots, nodes, algorithms, clients })
    }

    fn check_name(&self, certificate: &ParsedCertificate<'_>) -> Result<(), Error> {
        let is_one = |name| verify_server_name(certificate, name).is_ok();
        if self.nodes.is_empty() || self.nodes.iter().any(is_one) {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }
}

/// Never asked for: no version but TLS 1.3 is spoken.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.check_name(&parsed)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_name(&ParsedCertificate::try_from(end_entity)?)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
