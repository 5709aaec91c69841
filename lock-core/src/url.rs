use std::{env, fmt, path::Path, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{ErrorKind, LockError};

/// A connection URL: `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?key=value&...]`.
///
/// Like an ordinary URL, but with any number of endpoints. User, password and path are percent-decoded. The password is
/// never printed.
///
/// ```
/// use lock_core::LockUrl;
///
/// let url: LockUrl = "etcd://app:s3cret@h1:2379,h2:2379/prod?ttl=30s".parse()?;
/// assert_eq!(url.endpoints().len(), 2);
/// assert_eq!(url.path(), "prod");
/// assert_eq!(url.duration("ttl")?, Some(std::time::Duration::from_secs(30)));
/// assert!(!format!("{url:?}").contains("s3cret"));
/// # Ok::<(), lock_core::LockError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockUrl {
    scheme: String,
    username: Option<String>,
    password: Option<Secret>,
    endpoints: Vec<Endpoint>,
    path: String,
    params: Vec<(String, Secret)>,
}

/// One server of a [`LockUrl`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name or address; an IPv6 address keeps its brackets.
    pub host: String,
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// PEM files for TLS, read from disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authority that signs the servers' certificates; the system's if absent.
    pub ca: Option<String>,
    /// The client's certificate and private key.
    pub identity: Option<(String, Secret)>,
}

impl LockUrl {
    /// The scheme, in lower case.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The servers, in order; empty for a URL without a host such as `mem://`.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The path without its leading slash, percent-decoded.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A query parameter.
    #[must_use]
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == key).map(|(_, value)| value.expose())
    }

    /// A query parameter that is a duration, such as `30s` or `1m 30s`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if it is not one.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>, LockError> {
        let parse = |text| {
            humantime::parse_duration(text)
                .map_err(|error| invalid(format!("`{key}` is not a duration such as 30s or 500ms")).caused_by(error))
        };
        self.param(key).map(parse).transpose()
    }

    /// Refuses parameters that the backend does not know, so that a misspelt one is not ignored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], naming the first unknown or repeated one and listing the known ones.
    pub fn check_params(&self, known: &[&str]) -> Result<(), LockError> {
        for (at, (key, _)) in self.params.iter().enumerate() {
            if !known.contains(&key.as_str()) {
                return Err(invalid(format!("`{key}` is not a parameter of {}://; known are: {}", self.scheme, known.join(", "))));
            }
            if self.params[..at].iter().any(|(earlier, _)| earlier == key) {
                return Err(invalid(format!("the parameter `{key}` is given twice")));
            }
        }
        Ok(())
    }

    /// User and password: from the URL, else from the environment as `<PREFIX>_USERNAME` and `<PREFIX>_PASSWORD`. A
    /// password may come without a user.
    #[must_use]
    pub fn credentials(&self, env_prefix: &str) -> (Option<String>, Option<Secret>) {
        let username = self.username.clone().or_else(|| from_env(env_prefix, "USERNAME"));
        let password = self.password.clone().or_else(|| from_env(env_prefix, "PASSWORD").map(Secret));
        (username, password)
    }

    /// The files named by the parameters `ca`, `cert` and `key`, else by `<PREFIX>_CA`, `<PREFIX>_CERT` and
    /// `<PREFIX>_KEY` in the environment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if a file cannot be read, or a certificate comes without its key or the other way round.
    pub fn tls_files(&self, env_prefix: &str) -> Result<TlsFiles, LockError> {
        let read = |key: &str, variable: &str| {
            let path = self.param(key).map(str::to_owned).or_else(|| from_env(env_prefix, variable));
            path.map(|path| read_pem(key, path.as_ref())).transpose()
        };
        let ca = read("ca", "CA")?;
        let identity = match (read("cert", "CERT")?, read("key", "KEY")?) {
            (Some(cert), Some(key)) => Some((cert, Secret(key))),
            (None, None) => None,
            (Some(_), None) => return Err(invalid("a client certificate needs its private key; add `key=FILE`")),
            (None, Some(_)) => return Err(invalid("a private key needs its client certificate; add `cert=FILE`")),
        };
        Ok(TlsFiles { ca, identity })
    }
}

fn from_env(prefix: &str, name: &str) -> Option<String> {
    env::var(format!("{prefix}_{name}")).ok().filter(|value| !value.is_empty())
}

fn read_pem(key: &str, path: &Path) -> Result<String, LockError> {
    std::fs::read_to_string(path)
        .map_err(|error| invalid(format!("cannot read the PEM file of `{key}`, {}", path.display())).caused_by(error))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}

impl FromStr for LockUrl {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        const SHAPE: &str = "write it as scheme://host:port[,host:port...][/path][?key=value]";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid(format!("the URL has no `://`; {SHAPE}")))?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, hosts) = match authority.rsplit_once('@') {
            Some((userinfo, hosts)) => (format!("{userinfo}@"), hosts),
            None => (String::new(), authority),
        };
        // The first host goes through the URL parser with everything else, further ones on their own.
        let mut hosts = hosts.split(',');
        let first = hosts.next().unwrap_or_default();
        let whole = Url::parse(&format!("{scheme}://{userinfo}{first}{tail}"))
            .map_err(|error| invalid(format!("the URL cannot be parsed; {SHAPE}")).caused_by(error))?;
        if whole.fragment().is_some() {
            return Err(invalid("the URL has a fragment; write a `#` in a password, path or parameter as %23"));
        }
        let mut endpoints: Vec<_> = Endpoint::of(&whole).into_iter().collect();
        for (at, host) in hosts.enumerate() {
            // Not shown: a password whose comma is not encoded ends up here.
            let wrong =
                |error| invalid(format!("endpoint {} is not host:port; encode a comma in a password as %2C", at + 2)).caused_by(error);
            let url = Url::parse(&format!("{scheme}://{host}")).map_err(wrong)?;
            endpoints.push(Endpoint::of(&url).ok_or_else(|| invalid("an endpoint is empty; write host:port between the commas"))?);
        }
        let username = Some(whole.username()).filter(|name| !name.is_empty()).map(decode).transpose()?;
        let password = whole.password().map(decode).transpose()?.map(Secret);
        let path = decode(whole.path().trim_start_matches('/'))?;
        let params = whole.query_pairs().map(|(key, value)| (key.into_owned(), Secret(value.into_owned()))).collect();
        Ok(Self { scheme: whole.scheme().to_owned(), username, password, endpoints, path, params })
    }
}

fn decode(text: &str) -> Result<String, LockError> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| invalid("the URL holds percent-encoded bytes that are not UTF-8"))?;
    Ok(decoded.into_owned())
}

impl Endpoint {
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str().filter(|host| !host.is_empty())?;
        Some(Self { host: host.to_owned(), port: url.port() })
    }

    /// `host:port`, with the default port where none was given.
    #[must_use]
    pub fn authority(&self, default_port: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(default_port))
    }
}

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> LockUrl {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_user_path_and_params() {
        let url = parse("etcd://us%40er:p%2Cw%23@h1:1,[::1]:2,h3/a%20b/c?ttl=1m&ca=/x");
        let authorities: Vec<_> = url.endpoints().iter().map(|endpoint| endpoint.authority(2379)).collect();
        assert_eq!(authorities, ["h1:1", "[::1]:2", "h3:2379"]);
        let (username, password) = url.credentials("LOCK_TEST_UNSET");
        assert_eq!((username.as_deref(), password.as_ref().map(Secret::expose)), (Some("us@er"), Some("p,w#")));
        assert_eq!((url.path(), url.param("ca")), ("a b/c", Some("/x")));
        assert_eq!(url.duration("ttl").unwrap(), Some(Duration::from_secs(60)));
        assert!(parse("mem://").endpoints().is_empty());
    }

    #[test]
    fn what_cannot_be_used_says_why_without_the_password() {
        for text in [
            "",
            "etcd",
            "etcd:h",
            "://h",
            "etcd://h:port",
            "etcd://a:s3cret@h:99999",
            "etcd://a:s3cret@h,,h",
            "etcd://u:s3cret#x@h",
            "1x://h",
            "etcd://u:s3cret@h1:1,h2:x",
            "etcd://u:12,s3cret:x/y@h",
        ] {
            let error = text.parse::<LockUrl>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{text}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        let known = ["ttl", "ca"];
        assert!(parse("etcd://h?ttl=1s").check_params(&known).is_ok());
        let error = parse("etcd://h?tll=1s").check_params(&known).unwrap_err();
        assert!(error.to_string().contains("`tll`") && error.to_string().contains("ttl, ca"), "{error}");
        assert!(parse("etcd://h?ttl=1s&ttl=2s").check_params(&known).is_err());
        assert!(parse("etcd://h?ttl=soon").duration("ttl").is_err());
    }

    #[test]
    fn certificate_and_key_belong_together() {
        let dir = env::temp_dir();
        let missing = format!("etcd://h?ca={}/no-such-file.pem", dir.display());
        let error = parse(&missing).tls_files("LOCK_TEST_UNSET").unwrap_err();
        assert!(error.to_string().contains("no-such-file.pem"), "{error}");
        let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let error = parse(&format!("etcd://h?cert={this}")).tls_files("LOCK_TEST_UNSET").unwrap_err();
        assert!(error.to_string().contains("key=FILE"), "{error}");
    }
}
