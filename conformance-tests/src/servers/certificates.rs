use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use super::{process::new_name, supervisor::Supervisor};

/// A certificate authority of its own, with a certificate for a server and one for a client, as PEM
/// files.
/// The files vanish with the last clone and the last server that uses them, and also when this
/// process ends in any other way.
/// process ends in any other way.
///
/// ```no_run
/// use lock_conformance::servers::{self, Certificates, RedisOptions};
///
/// let certificates = Certificates::new()?;
/// let server = servers::redis(RedisOptions::new().with_mutual_tls(&certificates))?;
/// println!("{} with {}", server.url(), certificates.client_cert().display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Belongs to no server: it owns the directory.
    owner: Arc<Supervisor>,
}

impl Certificates {
    /// Makes the authority and the certificates.
    ///
    /// # Errors
    ///
    /// If the files cannot be written.
    pub fn new() -> io::Result<Self> {
        let directory = env::temp_dir().join(new_name("certificates"));
        let certificates = Self {
            owner: Arc::new(Supervisor::spawn(&directory, &[])?),
        };
        let authority = authority().map_err(io::Error::other)?;
        fs::write(certificates.ca(), authority.pem())?;
        let server = leaf(&authority, "server", ExtendedKeyUsagePurpose::ServerAuth)
            .map_err(io::Error::other)?;
        fs::write(certificates.server_cert(), server.cert)?;
        fs::write(certificates.server_key(), server.key)?;
        let client = leaf(&authority, "client", ExtendedKeyUsagePurpose::ClientAuth)
            .map_err(io::Error::other)?;
        fs::write(certificates.client_cert(), client.cert)?;
        fs::write(certificates.client_key(), client.key)?;
        Ok(certificates)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory().join("ca.pem")
    }

    /// The server's certificate, for `127.0.0.1` and `localhost`.
    #[must_use]
    pub fn server_cert(&self) -> PathBuf {
        self.directory().join("server.pem")
    }

    /// The server's private key.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.directory().join("server.key")
    }

    /// The client's certificate; its common name is `client`.
    #[must_use]
    pub fn client_cert(&self) -> PathBuf {
        self.directory().join("client.pem")
    }

    /// The client's private key.
    #[must_use]
    pub fn client_key(&self) -> PathBuf {
        self.directory().join("client.key")
    }

    /// Directory of all these files.
    pub(super) fn directory(&self) -> &Path {
        self.owner.directory()
    }
}

struct Leaf {
    cert: String,
    key: String,
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn leaf(
    authority: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> Result<Leaf, rcgen::Error> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    Ok(Leaf {
        cert: params.signed_by(&key, authority)?.pem(),
        key: key.serialize_pem(),
    })
}
