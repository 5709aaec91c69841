use super::LockConfig;

/// Keys in which two configurations differ, and what it takes to go from one to the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigChanges {
    /// Keys that a client reads when it connects: connect anew, move to the new locks, and
    /// [shut down](crate::DistributedLock::shutdown) the old ones when their guards are gone. Two
    /// clients exclude each other as long as both see the same names in the same store.
    pub reconnect: Vec<&'static str>,
    /// Keys for which it is enough to [apply the layers](LockConfig::layered) anew.
    pub layers: Vec<&'static str>,
}

impl ConfigChanges {
    /// Returns true if the client must connect anew. A password that has changed in its file or
    /// variable needs that as well, and is not seen here.
    #[must_use]
    pub fn need_reconnect(&self) -> bool {
        !self.reconnect.is_empty()
    }

    /// Returns true if nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reconnect.is_empty() && self.layers.is_empty()
    }

    pub(super) fn between(old: &LockConfig, new: &LockConfig) -> Self {
        // Without `..`, so that no key is forgotten.
        let LockConfig {
            url,
            scheme,
            hosts,
            path,
            username,
            password,
            password_file,
            password_env,
            ca,
            cert,
            key,
            namespace,
            ttl,
            connect_timeout,
            request_timeout,
            background_thread,
            parameters,
            layers,
        } = old;
        let reconnect = [
            ("url", *url != new.url),
            ("scheme", *scheme != new.scheme),
            ("hosts", *hosts != new.hosts),
            ("path", *path != new.path),
            ("username", *username != new.username),
            ("password", *password != new.password),
            ("password_file", *password_file != new.password_file),
            ("password_env", *password_env != new.password_env),
            ("ca", *ca != new.ca),
            ("cert", *cert != new.cert),
            ("key", *key != new.key),
            ("namespace", *namespace != new.namespace),
            ("ttl", *ttl != new.ttl),
            ("connect_timeout", *connect_timeout != new.connect_timeout),
            ("request_timeout", *request_timeout != new.request_timeout),
            (
                "background_thread",
                *background_thread != new.background_thread,
            ),
            ("parameters", *parameters != new.parameters),
        ];
        let layers = [("layers", *layers != new.layers)];
        Self {
            reconnect: changed(&reconnect),
            layers: changed(&layers),
        }
    }
}

fn changed(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    let changed = keys.iter().filter(|(_, is_changed)| *is_changed);
    changed.map(|(key, _)| *key).collect()
}
