use crate::{ErrorKind, LockError, Secret};

/// Certificates and keys for TLS, as PEM text.
///
/// ```
/// use lock_core::TlsPem;
///
/// # let (ca, cert, key) = ("", "", "");
/// let system_authorities = TlsPem::new();
/// let own_authority = TlsPem::new().with_ca(ca).with_identity(cert, key);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsPem {
    /// Certificate authority that signs the servers' certificates; the system's if absent.
    pub ca: Option<String>,
    /// The client's certificate and private key.
    pub identity: Option<(String, Secret)>,
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const KEY: &str = "PRIVATE KEY-----";

impl TlsPem {
    /// Trusts the system's certificate authorities, and shows no client certificate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts this certificate authority instead of the system's.
    #[must_use]
    pub fn with_ca(mut self, pem: impl Into<String>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows this client certificate, with its private key.
    #[must_use]
    pub fn with_identity(mut self, cert: impl Into<String>, key: impl Into<Secret>) -> Self {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    /// Refuses text without the PEM block that it should have. TLS libraries take it for an empty
    /// list, and then trust nobody.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        let cert = self.identity.as_ref().map(|(cert, _)| cert.as_str());
        let key = self.identity.as_ref().map(|(_, key)| key.expose());
        for (what, text, block) in [
            ("certificate authority", self.ca.as_deref(), CERTIFICATE),
            ("client certificate", cert, CERTIFICATE),
            ("client's key", key, KEY),
        ] {
            if text.is_some_and(|text| !text.contains(block)) {
                return Err(LockError::new(
                    ErrorKind::InvalidConfig,
                    format!("the {what} is not PEM; it must hold `{block}`"),
                ));
            }
        }
        Ok(())
    }
}
