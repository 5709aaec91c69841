use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{Client, Error as EtcdError};
use tokio::sync::{Mutex, MutexGuard};

/// The authentication token of one member's client.
///
/// The client library renews it only if a single request says that it is invalid. Here it is
/// renewed once, however many requests failed because of it.
#[derive(Default)]
pub(super) struct AuthToken {
    /// Counts renewals.
    renewed: AtomicU64,
    /// The token is invalid until it has been renewed this many times.
    wanted: AtomicU64,
    renewing: Mutex<()>,
}

impl AuthToken {
    pub(super) fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Marks the token as invalid that was current after so many renewals.
    pub(super) fn invalidate(&self, renewed: u64) {
        self.wanted.fetch_max(renewed + 1, Ordering::Relaxed);
    }

    /// Renews the token if it is invalid, unless another request is doing so. Sends nothing for a
    /// client without a user.
    pub(super) async fn renew_if_invalid(&self, client: &Client) -> Result<(), EtcdError> {
        match self.renewing.try_lock() {
            Ok(renewing) if self.is_invalid() => self.renew(client, renewing).await,
            _ => Ok(()),
        }
    }

    /// As [`renew_if_invalid`](Self::renew_if_invalid), but waits for a renewal under way.
    pub(super) async fn ensure_valid(&self, client: &Client) -> Result<(), EtcdError> {
        if !self.is_invalid() {
            return Ok(());
        }
        let renewing = self.renewing.lock().await;
        if self.is_invalid() {
            self.renew(client, renewing).await
        } else {
            Ok(())
        }
    }

    async fn renew(&self, client: &Client, _renewing: MutexGuard<'_, ()>) -> Result<(), EtcdError> {
        client.refresh_token().await?;
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn is_invalid(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > self.renewed()
    }
}
