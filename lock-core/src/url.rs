use std::{env, fmt, path::Path, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{ErrorKind, LockError, Secret, TlsPem};

/// A connection URL:
/// `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?key=value&...]`.
///
/// Like an ordinary URL, but with any number of endpoints. User, password, path and parameters are
/// percent-decoded; a `+` stays one. In a user or password write `/`, `?` and `#` as `%2F`, `%3F`
/// and `%23`, in a path or parameter `@` and `#` as `%40` and `%23`, in a parameter also `&` as
/// `%26`. A password, anything that may be one, and the parameters are never printed.
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
#[derive(Clone, PartialEq, Eq)]
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
#[non_exhaustive]
pub struct Endpoint {
    /// Host name or address; an IPv6 address keeps its brackets.
    pub host: String,
    /// The port, if one was given.
    pub port: Option<u16>,
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
        self.params
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.expose())
    }

    /// The same URL under another scheme and without some of its parameters: for a connector that
    /// stands before another.
    #[must_use]
    pub fn rewritten(&self, scheme: &str, without: &[&str]) -> Self {
        let mut url = self.clone();
        scheme.clone_into(&mut url.scheme);
        url.params
            .retain(|(key, _)| !without.contains(&key.as_str()));
        url
    }

    /// A query parameter that is a duration, such as `30s` or `1m 30s`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if it is not one.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>, LockError> {
        let parse = |text| {
            humantime::parse_duration(text).map_err(|error| {
                invalid(format!("`{key}` is not a duration such as 30s or 500ms")).caused_by(error)
            })
        };
        self.param(key).map(parse).transpose()
    }

    /// A query parameter that is `true` or `false`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if it is neither.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, LockError> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| invalid(format!("`{key}` is true or false")))
        };
        self.param(key).map(parse).transpose()
    }

    /// Refuses parameters that the backend does not know, so that a misspelt one is not ignored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], naming the first unknown or repeated one and listing the known
    /// ones. Text after a password is not named: it may be the rest of the password, after an `&`
    /// that should have been encoded.
    pub fn check_params(&self, known: &[&str]) -> Result<(), LockError> {
        for (at, (key, _)) in self.params.iter().enumerate() {
            let earlier = &self.params[..at];
            if !known.contains(&key.as_str()) {
                let after_secret = earlier
                    .iter()
                    .any(|(key, _)| key.to_ascii_lowercase().contains("pass"));
                let which = match after_secret {
                    true => format!("parameter {} (write an `&` in a password as %26)", at + 1),
                    false => format!("`{key}`"),
                };
                let hint = if key == "namespace" && known.contains(&"prefix") {
                    "; the namespace is given as `prefix`"
                } else {
                    ""
                };
                return Err(invalid(format!(
                    "{which} is not a parameter of {}://{hint}; known are: {}",
                    self.scheme,
                    known.join(", ")
                )));
            }
            if earlier.iter().any(|(earlier, _)| earlier == key) {
                return Err(invalid(format!("the parameter `{key}` is given twice")));
            }
        }
        Ok(())
    }

    /// User and password: from the URL, else from the environment as `<PREFIX>_USERNAME` and
    /// `<PREFIX>_PASSWORD`. A password may come without a user.
    #[must_use]
    pub fn credentials(&self, env_prefix: &str) -> (Option<String>, Option<Secret>) {
        let username = self
            .username
            .clone()
            .or_else(|| from_env(env_prefix, "USERNAME"));
        let password = self
            .password
            .clone()
            .or_else(|| from_env(env_prefix, "PASSWORD").map(Secret::new));
        (username, password)
    }

    /// Contents of the files that are named by the parameters `ca`, `cert` and `key`, else by
    /// `<PREFIX>_CA`, `<PREFIX>_CERT` and `<PREFIX>_KEY` in the environment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if a file cannot be read, or a certificate comes without its key
    /// or the other way round.
    pub fn tls_pem(&self, env_prefix: &str) -> Result<TlsPem, LockError> {
        let read = |key: &str, variable: &str| {
            let path = self
                .param(key)
                .map(str::to_owned)
                .or_else(|| from_env(env_prefix, variable));
            path.map(|path| read_pem(key, path.as_ref())).transpose()
        };
        let ca = read("ca", "CA")?;
        let identity = match (read("cert", "CERT")?, read("key", "KEY")?) {
            (Some(cert), Some(key)) => Some((cert, Secret::new(key))),
            (None, None) => None,
            (Some(_), None) => {
                return Err(invalid(
                    "a client certificate needs its private key; add `key=FILE`",
                ));
            }
            (None, Some(_)) => {
                return Err(invalid(
                    "a private key needs its client certificate; add `cert=FILE`",
                ));
            }
        };
        let mut pem = TlsPem::new();
        pem.ca = ca;
        pem.identity = identity;
        Ok(pem)
    }
}

impl fmt::Debug for LockUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A single word before the `@` is often meant as a password.
        let username = self.password.as_ref().and(self.username.as_ref());
        f.debug_struct("LockUrl")
            .field("scheme", &self.scheme)
            .field("username", &username)
            .field("endpoints", &self.endpoints)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn from_env(prefix: &str, name: &str) -> Option<String> {
    env::var(format!("{prefix}_{name}"))
        .ok()
        .filter(|value| !value.is_empty())
}

fn read_pem(key: &str, path: &Path) -> Result<String, LockError> {
    std::fs::read_to_string(path).map_err(|error| {
        invalid(format!(
            "cannot read the PEM file of `{key}`, {}",
            path.display()
        ))
        .caused_by(error)
    })
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}

impl FromStr for LockUrl {
    type Err = LockError;

    // No message shows a part of the text: an unencoded character of a password can put the rest of
    // it anywhere.
    fn from_str(text: &str) -> Result<Self, LockError> {
        const SHAPE: &str = "write it as scheme://host:port[,host:port...][/path][?key=value]";
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .ok_or_else(|| invalid(format!("the URL has no `://`; {SHAPE}")))?;
        if !is_scheme(scheme) {
            return Err(invalid(format!(
                "what is before `://` is not a scheme; {SHAPE}"
            )));
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if tail.contains('@') {
            return Err(invalid(
                "an `@` comes after a `/`, `?` or `#`; in a user or password write these as %2F, %3F and %23, and an `@` elsewhere as %40",
            ));
        }
        if tail.contains('#') {
            return Err(invalid(
                "the URL has a fragment; write a `#` in a password, path or parameter as %23",
            ));
        }
        let (userinfo, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (username, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            username: given(decode(username)?),
            password: given(decode(password)?).map(Secret::new),
            endpoints: endpoints(hosts)?,
            path: decode(path.trim_start_matches('/'))?,
            params: query
                .split('&')
                .filter(|param| !param.is_empty())
                .map(parameter)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn endpoints(hosts: &str) -> Result<Vec<Endpoint>, LockError> {
    if hosts.is_empty() {
        return Ok(Vec::new());
    }
    let endpoint = |(at, host): (usize, &str)| {
        let wrong = || {
            invalid(format!(
                "endpoint {} is not host:port; encode a comma in a password as %2C",
                at + 1
            ))
        };
        if host.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
            return Err(wrong());
        }
        // A placeholder scheme, to which no parser gives a meaning.
        let url =
            Url::parse(&format!("lock://{host}")).map_err(|error| wrong().caused_by(error))?;
        Endpoint::of(&url)
            .ok_or_else(|| invalid("an endpoint is empty; write host:port between the commas"))
    };
    hosts.split(',').enumerate().map(endpoint).collect()
}

/// Decodes a parameter. A plus stays a plus: only forms make it a space.
fn parameter(text: &str) -> Result<(String, Secret), LockError> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    Ok((decode(key)?, Secret::new(decode(value)?)))
}

fn decode(text: &str) -> Result<String, LockError> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| invalid("the URL holds percent-encoded bytes that are not UTF-8"))?;
    Ok(decoded.into_owned())
}

impl Endpoint {
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str().filter(|host| !host.is_empty())?;
        Some(Self::new(host, url.port()))
    }

    /// A host and, if it is not the default, its port.
    #[must_use]
    pub fn new(host: impl Into<String>, port: Option<u16>) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    /// `host:port`, with the default port where none was given.
    #[must_use]
    pub fn authority(&self, default_port: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(default_port))
    }
}

#[cfg(test)]
mod tests;
