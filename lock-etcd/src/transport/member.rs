use etcd_client::{Client, ConnectOptions, Error as EtcdError};
use lock_core::backend::Tasks;
use tokio::{
    sync::{Mutex, OnceCell},
    time::Instant,
};

use super::{auth_token::AuthToken, breaker::Breaker};
use crate::error::Failure;

/// One member of the cluster and the connection to it, made on first use.
pub(super) struct Member {
    pub(super) endpoint: String,
    options: ConnectOptions,
    client: OnceCell<Client>,
    /// Replaces `client` once the runtime that drove its connection has ended.
    client_of_fallback: OnceCell<Client>,
    pub(super) token: AuthToken,
    pub(super) breaker: Breaker,
    /// The time of the latest status request.
    pub(super) status_read_at: Mutex<Option<Instant>>,
    /// Drives the connection: an application may start its own runtime for a single call.
    tasks: Tasks,
}

impl Member {
    pub(super) fn new(endpoint: String, options: ConnectOptions, tasks: Tasks) -> Self {
        Self {
            endpoint,
            options,
            client: OnceCell::new(),
            client_of_fallback: OnceCell::new(),
            token: AuthToken::default(),
            breaker: Breaker::default(),
            status_read_at: Mutex::new(None),
            tasks,
        }
    }

    /// A member behind a client that the application connected. It cannot be connected again.
    #[cfg(feature = "etcd-client-0_21")]
    pub(super) fn of_client(client: Client, tasks: Tasks) -> Self {
        let endpoint = "the given client".to_owned();
        Self {
            client: OnceCell::new_with(Some(client.clone())),
            client_of_fallback: OnceCell::new_with(Some(client)),
            ..Self::new(endpoint, ConnectOptions::new(), tasks)
        }
    }

    pub(super) async fn client(&self) -> Result<&Client, Failure> {
        let client = if self.tasks.have_moved() {
            &self.client_of_fallback
        } else {
            &self.client
        };
        client.get_or_try_init(|| self.connect()).await
    }

    /// Makes a request once, with a valid token if one can be had.
    pub(super) async fn attempt<T, F, R>(&self, request: &F) -> Result<T, Failure>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let outcome = self.send(request).await;
        self.breaker.record(&self.endpoint, &outcome);
        outcome
    }

    async fn send<T, F, R>(&self, request: &F) -> Result<T, Failure>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let client = self.client().await?;
        let renewed = self.token.renew_if_invalid(client).await;
        let sent_with = self.token.renewed();
        request(client).await.map_err(|error| {
            let failure = Failure::of(error, &self.endpoint);
            if !failure.token_invalid {
                return failure;
            }
            self.token.invalidate(sent_with);
            renewed
                .err()
                .map_or(failure, |error| Failure::of(error, &self.endpoint))
        })
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let endpoint = self.endpoint.clone();
        let options = self.options.clone();
        let connect = self
            .tasks
            .finish(async move { Ok(Client::connect([endpoint], Some(options)).await) });
        connect
            .await
            .map_err(Failure::transient)?
            .map_err(|error| match error {
                // Nothing is connected yet: the transport can only complain about its settings.
                EtcdError::TransportError(_) => Failure::unusable_tls(error),
                error => Failure::of(error, &self.endpoint),
            })
    }
}
