//! What went wrong between the two ends of a TLS connection, said so that a person knows which host to look at.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use std::borrow::Cow;
use std::io;

/// Seen from this host; "it" is the other one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Its certificate does not pass here.
    #[error("its certificate {0}")]
    Theirs(Cow<'static, str>),
    /// It has no certificate.
    #[error("it showed no certificate")]
    NoCertificate,
    /// This host's certificate does not pass there.
    #[error("it refused this host's certificate, which {0}")]
    Ours(&'static str),
    /// It speaks something else.
    #[error("it does not speak TLS")]
    NotTls,
    /// It has nothing in common with this host.
    #[error("it does not speak TLS 1.3")]
    OldTls,
    /// A record failed its check.
    #[error("what it sent is not genuine, or was changed on the way")]
    Changed,
    /// Anything else.
    #[error("TLS failed: {0}")]
    Other(Box<Error>),
}

impl Fault {
    /// The fault inside an error of [`crate::conn::Conn`], if TLS is what failed.
    pub(crate) fn of(error: &io::Error) -> Option<Fault> {
        error.get_ref()?.downcast_ref::<Error>().cloned().map(Fault::from)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error {
            Error::InvalidCertificate(e) => Fault::Theirs(theirs(&e)),
            Error::NoCertificatesPresented => Fault::NoCertificate,
            Error::AlertReceived(alert) => match ours(alert) {
                Some(why) => Fault::Ours(why),
                None if alert == AlertDescription::ProtocolVersion => Fault::OldTls,
                None => Fault::Other(Box::new(error)),
            },
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Fault::NotTls,
            Error::PeerIncompatible(_) => Fault::OldTls,
            Error::DecryptError => Fault::Changed,
            other => Fault::Other(Box::new(other)),
        }
    }
}

fn theirs(error: &CertificateError) -> Cow<'static, str> {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => "has expired; make a new one with `aventine keys`".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "is not valid yet; compare the clocks of the two hosts".into()
        }
        E::UnknownIssuer | E::BadSignature => "was not issued by the `ca` of this host's `tls`".into(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "is not that of a node".into(),
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "carries none of the names in `nodes` of this host's `tls`".into()
        }
        other => format!("is not valid: {other}").into(),
    }
}

/// What the other side's alert says about this host's certificate.
fn ours(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as A;
    Some(match alert {
        A::CertificateExpired => {
            "has expired, or is not valid yet by its clock; make a new one with `aventine keys`, or compare the clocks"
        }
        A::UnknownCA => "was not issued by the `ca` of the other host's `tls`",
        A::BadCertificate => "it cannot read, or which carries none of the names in `nodes` of its `tls`",
        A::UnsupportedCertificate => "is not that of a node",
        A::CertificateRequired => "was not shown",
        A::CertificateRevoked | A::CertificateUnknown | A::AccessDenied => "it does not accept",
        _ => return None,
    })
}
