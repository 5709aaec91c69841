use lock_core::{LockError, TlsPem};
use redis::ConnectionInfo;

/// Adds certificates and keys to an address with TLS.
#[cfg(feature = "_tls")]
pub(crate) fn with_pem(info: ConnectionInfo, pem: &TlsPem) -> Result<ConnectionInfo, LockError> {
    use redis::{Client, ClientTlsConfig, TlsCertificates};

    use crate::error::Failure;

    ensure_provider()?;
    let certificates = TlsCertificates {
        client_tls: pem.identity.as_ref().map(|(cert, key)| ClientTlsConfig {
            client_cert: cert.clone().into_bytes(),
            client_key: key.expose().as_bytes().to_vec(),
        }),
        root_cert: pem.ca.as_ref().map(|ca| ca.clone().into_bytes()),
    };
    // It parses them into the address.
    let client = Client::build_with_tls(info, certificates).map_err(Failure::bad_setting)?;
    Ok(client.get_connection_info().clone())
}

/// The client library makes every configuration with the process's provider of cryptography, and
/// panics if none is installed and more than one is compiled in. Which one then is the
/// application's choice.
#[cfg(feature = "_tls")]
fn ensure_provider() -> Result<(), LockError> {
    use rustls::{ClientConfig, crypto::CryptoProvider};

    let both = cfg!(all(feature = "tls-ring", feature = "tls-aws-lc"));
    // Another crate of the application may have enabled the other one.
    let chosen = || !both && std::panic::catch_unwind(|| drop(ClientConfig::builder())).is_ok();
    if CryptoProvider::get_default().is_some() || chosen() {
        return Ok(());
    }
    Err(crate::config::invalid(
        "rustls has more than one provider of cryptography, or none, compiled in; install one first, for \
         example rustls::crypto::ring::default_provider().install_default()",
    ))
}

#[cfg(not(feature = "_tls"))]
pub(crate) fn with_pem(_: ConnectionInfo, _: &TlsPem) -> Result<ConnectionInfo, LockError> {
    Err(crate::config::invalid(
        "TLS is not compiled in; enable the Cargo feature `tls-ring` or `tls-aws-lc`",
    ))
}
