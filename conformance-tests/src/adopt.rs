use std::{env, fmt, process::ExitCode, sync::Arc, time::Duration};

use lock_core::{Capabilities, Connector, LockError, LockUrl};

use crate::{
    Claim, Operator, Server, Start, Suite,
    suite::BoxError,
    url_harness::{Hooks, UrlHarness},
};

/// Starts a suite for a backend that is opened by URL.
///
/// The suite makes its clients, its child processes and a proxy per client from the connector and
/// the URL alone:
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use lock_conformance::Level;
/// # use lock_core::{Capabilities, Connector, DistributedLock, LockError, LockUrl};
/// # #[derive(Debug)] struct MyConnector;
/// # #[async_trait::async_trait]
/// # impl Connector for MyConnector {
/// #     fn schemes(&self) -> &'static [&'static str] { &["my"] }
/// #     fn capabilities(&self, _: &LockUrl) -> Result<Capabilities, LockError> { unimplemented!() }
/// #     async fn connect(&self, _: &LockUrl) -> Result<std::sync::Arc<dyn DistributedLock>, LockError> { unimplemented!() }
/// # }
///
/// fn main() -> ExitCode {
///     lock_conformance::backend(MyConnector)
///         .url_from_env("MY_URL")
///         .claims(Level::Exclusive)
///         .run()
/// }
/// ```
pub fn backend(connector: impl Connector) -> Backend {
    Backend {
        connector: Arc::new(connector),
        url: Err("no URL is given; call `url` or `url_from_env`".into()),
        hooks: Hooks::default(),
        claims: Vec::new(),
        short_ttl: None,
    }
}

/// A suite for a backend that is opened by URL; made by [`backend`].
#[must_use = "call `run`"]
pub struct Backend {
    connector: Arc<dyn Connector>,
    url: Result<String, String>,
    hooks: Hooks,
    claims: Vec<Claim>,
    short_ttl: Option<Duration>,
}

impl Backend {
    /// Sets the URL of the store.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Ok(url.into());
        self
    }

    /// Takes the URL of the store from an environment variable. Without it nothing is run, which is
    /// a failure if [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
    pub fn url_from_env(mut self, variable: &str) -> Self {
        self.url = env::var(variable)
            .map_err(|_| format!("set {variable} to the URL of a store for tests"));
        self
    }

    /// Claims a [`Level`](crate::Level) or a [`Badge`](crate::Badge); see [`Suite::claims`].
    pub fn claims(mut self, claim: impl Into<Claim>) -> Self {
        self.claims.push(claim.into());
        self
    }

    /// Adds access to the store behind the clients' backs.
    pub fn operator(mut self, operator: impl Operator) -> Self {
        self.hooks.operator = Some(Arc::new(operator));
        self
    }

    /// Adds control of the store's server.
    pub fn server(mut self, server: impl Server) -> Self {
        self.hooks.server = Some(Arc::new(server));
        self
    }

    /// Sets the TTL of cases that wait for its end. Default: 2 s, or the backend's least one if that
    /// is longer.
    pub fn short_ttl(mut self, ttl: Duration) -> Self {
        self.short_ttl = Some(ttl);
        self
    }

    /// Runs the cases; see [`Suite::run`].
    #[must_use = "the exit code is the verdict"]
    pub fn run(self) -> ExitCode {
        self.suite().run()
    }

    /// The suite, for [`Suite::judge`].
    pub fn suite(self) -> Suite {
        let declared = self.declared();
        let name = match &declared {
            Some(Ok(declared)) => declared.backend.clone(),
            _ => self
                .connector
                .schemes()
                .first()
                .copied()
                .unwrap_or("backend")
                .into(),
        };
        let claims = self.claims.clone();
        let start = move |child: Option<String>| {
            let started = self.start(child);
            async move { started }
        };
        let mut suite = Suite::new(name, start);
        if let Some(Ok(capabilities)) = declared {
            suite = suite.with_capabilities(capabilities);
        }
        claims.into_iter().fold(suite, Suite::claims)
    }

    fn declared(&self) -> Option<Result<Capabilities, LockError>> {
        let url = self.url.as_ref().ok()?;
        let declared = |url: LockUrl| self.connector.capabilities(&url);
        Some(url.parse().and_then(declared))
    }

    fn start(&self, child: Option<String>) -> Result<Start, BoxError> {
        let url = match (child, &self.url) {
            (Some(url), _) => url,
            (None, Ok(url)) => url.clone(),
            (None, Err(reason)) => return Ok(Start::Skip(reason.clone())),
        };
        let connector = Arc::clone(&self.connector);
        let harness = UrlHarness::new(connector, url, self.hooks.clone(), self.short_ttl)?;
        Ok(Start::Ready(Arc::new(harness)))
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("connector", &self.connector)
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}
