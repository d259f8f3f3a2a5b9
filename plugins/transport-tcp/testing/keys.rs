//! Certificates for tests.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A CA and the directory of everything it issued.
pub(crate) struct Keys {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, dir.path().to_string_lossy().into_owned());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Keys { dir, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Makes a node's files, changed as `but` says, and gives the `tls` key that names them.
    pub(crate) fn node(&self, name: &str, but: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        but(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        let secret = self.path(&format!("{name}.key"));
        fs::write(&secret, key.serialize_pem()).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        tls(&self.path("ca.pem"), &self.path(&format!("{name}.pem")), &secret)
    }
}

/// The `tls` key.
pub(crate) fn tls(ca: &Path, cert: &Path, key: &Path) -> String {
    format!("tls = {{ ca = {ca:?}, cert = {cert:?}, key = {key:?} }}")
}
