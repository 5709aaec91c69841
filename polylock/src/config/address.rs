//! The URL that a configuration amounts to.

use std::{env, fs, path::Path};

use lock_core::{LockError, LockUrl, Secret};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serializer;

use super::{LockConfig, invalid};

/// All but what no part of a URL gives a meaning to.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

pub(super) fn url(config: &LockConfig) -> Result<LockUrl, LockError> {
    let text = with_parameters(with_credentials(address(config)?, config)?, config);
    text.parse()
}

fn address(config: &LockConfig) -> Result<String, LockError> {
    let parts = [&config.scheme, &config.hosts, &config.path];
    match (&config.url, &config.scheme) {
        (Some(_), _) if parts.iter().any(|part| part.is_some()) => Err(invalid(
            "there is a `url` and a part of one; leave out `scheme`, `hosts` and `path`",
        )),
        (Some(url), _) => Ok(url.clone()),
        (None, Some(scheme)) => {
            let hosts = config.hosts.as_deref().unwrap_or_default();
            if hosts.contains(['@', '/', '?', '#']) {
                return Err(invalid(
                    "`hosts` is host:port[,host:port...]; the user is `username`",
                ));
            }
            let path = config
                .path
                .as_deref()
                .map(|path| format!("/{}", encoded(path)));
            Ok(format!("{scheme}://{hosts}{}", path.unwrap_or_default()))
        }
        (None, None) => Err(invalid(
            "there is no address; set `url`, such as redis://host:6379, or `scheme` and `hosts`",
        )),
    }
}

fn with_credentials(url: String, config: &LockConfig) -> Result<String, LockError> {
    let password = password(config)?;
    if config.username.is_none() && password.is_none() {
        return Ok(url);
    }
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| invalid("`url` has no `://`"))?;
    if rest.contains('@') {
        return Err(invalid(
            "the URL has a user or a password, and so has the configuration; give them once",
        ));
    }
    let user = config.username.as_deref().map(encoded).unwrap_or_default();
    let password = password.map(|it| format!(":{}", encoded(it.expose())));
    Ok(format!(
        "{scheme}://{user}{}@{rest}",
        password.unwrap_or_default()
    ))
}

fn password(config: &LockConfig) -> Result<Option<Secret>, LockError> {
    match (
        &config.password,
        &config.password_file,
        &config.password_env,
    ) {
        (None, None, None) => Ok(None),
        (Some(password), None, None) => Ok(Some(password.clone())),
        (None, Some(file), None) => read(file).map(Some),
        (None, None, Some(variable)) => match env::var(variable) {
            Ok(password) if !password.is_empty() => Ok(Some(Secret::new(password))),
            _ => Err(invalid(format!(
                "`password_env` names the variable {variable}, which is not set; set it"
            ))),
        },
        _ => Err(invalid(
            "the password is given twice; keep one of `password`, `password_file` and `password_env`",
        )),
    }
}

fn read(file: &Path) -> Result<Secret, LockError> {
    let text = fs::read_to_string(file).map_err(|error| {
        let file = file.display();
        invalid(format!("`password_file` {file} cannot be read")).caused_by(error)
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(invalid(format!(
            "`password_file` {} is empty; write the password into it",
            file.display()
        ))),
        password => Ok(Secret::new(password)),
    }
}

fn with_parameters(mut url: String, config: &LockConfig) -> String {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map(|path| path.to_string_lossy().into_owned())
    };
    let time = |time: Option<std::time::Duration>| {
        time.map(|time| humantime::format_duration(time).to_string())
    };
    let given = [
        ("namespace", config.namespace.clone()),
        ("ttl", time(config.ttl)),
        ("connect_timeout", time(config.connect_timeout)),
        ("request_timeout", time(config.request_timeout)),
        (
            "background_thread",
            config.background_thread.map(|it| it.to_string()),
        ),
        ("ca", path(&config.ca)),
        ("cert", path(&config.cert)),
        ("key", path(&config.key)),
    ];
    let given = given
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_deref()?))))
        .chain(config.parameters.clone());
    for parameter in given {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&parameter);
    }
    url
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The URL with nothing that may be a secret.
pub(super) fn without_password(url: &str) -> String {
    let (start, query) = url.split_once('?').unwrap_or((url, ""));
    // A password that is not encoded may hold any of the separators.
    let start = match (start.split_once("://"), url.rfind('@')) {
        (Some((scheme, rest)), Some(at)) => {
            let user = rest.split_once(':').map(|(user, _)| user);
            let user = user.filter(|user| !user.contains(['@', '/']));
            let after = &url[at + 1..];
            let after = after.split_once('?').map_or(after, |(start, _)| start);
            match user.filter(|user| !user.is_empty()) {
                Some(user) => format!("{scheme}://{user}@{after}"),
                None => format!("{scheme}://{after}"),
            }
        }
        _ => start.to_owned(),
    };
    match without_secrets(query) {
        query if query.is_empty() => start,
        query => format!("{start}?{query}"),
    }
}

/// Parameters without what may be a secret: all from a password on.
pub(super) fn without_secrets(parameters: &str) -> String {
    let is_safe = |parameter: &&str| {
        let key = parameter.split('=').next().unwrap_or_default();
        !key.to_ascii_lowercase().contains("pass") && !parameter.contains('@')
    };
    let safe: Vec<_> = parameters.split('&').take_while(is_safe).collect();
    safe.join("&")
}

pub(super) fn url_without_secrets<S: Serializer>(
    url: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serialize(url.as_deref().map(without_password), serializer)
}

pub(super) fn parameters_without_secrets<S: Serializer>(
    parameters: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serialize(parameters.as_deref().map(without_secrets), serializer)
}

fn serialize<S: Serializer>(text: Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match text {
        Some(text) => serializer.serialize_some(&text),
        None => serializer.serialize_none(),
    }
}
