use std::{fmt::Debug, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{Capabilities, DistributedLock, LockError, LockName};

/// The part that a backend author supplies: how to reach the store, and which faults can be caused
/// in it.
#[async_trait]
pub trait Harness: Debug + Send + Sync + 'static {
    /// The capabilities that the backend declares; they select the cases.
    fn capabilities(&self) -> Capabilities;

    /// Connects a new client to the store: independent of the others, as if from another process.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError>;

    /// The TTL that timing cases use: the shortest one that the store keeps reliably on a loaded
    /// machine.
    fn short_ttl(&self) -> Duration {
        self.capabilities().ttl.min.max(Duration::from_secs(2))
    }

    /// True if cases run under tokio's paused clock: for backends on
    /// [`lock_core::backend::Clock::Tokio`]. The start function is then called anew in each case's
    /// own runtime, so that no two cases share a clock.
    fn paused_time(&self) -> bool {
        false
    }

    /// Address by which a child process reaches the same store. The start function gets it in the
    /// child, whose harness then connects to that store and starts none. `None` if no other process
    /// can.
    fn child_address(&self) -> Option<String> {
        None
    }

    /// Addresses of the store as `host:port`, in front of which a proxy can stand for one client;
    /// empty if there are none, or if the store sends its clients elsewhere.
    fn addresses(&self) -> Vec<String> {
        Vec::new()
    }

    /// Connects a client as [`connect`](Self::connect) does, to these addresses in place of
    /// [`addresses`](Self::addresses); `None` if this harness cannot.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn connect_at(
        &self,
        _addresses: &[SocketAddr],
    ) -> Result<Option<Arc<dyn DistributedLock>>, LockError> {
        Ok(None)
    }

    /// Makes a harness of the same kind on a store of its own, which ends when the harness is
    /// dropped: for cases whose faults or counts would disturb others, or be disturbed by them.
    /// `None` if there is only one store; such cases are then skipped.
    ///
    /// # Errors
    ///
    /// The reason why no second store could be started.
    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        Ok(None)
    }

    /// Lists the entries that this name has in the store, of holders and waiters, in any notation;
    /// `None` if they cannot be listed. Data that is meant to stay, such as a token counter, does
    /// not count.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn entries(&self, _name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        Ok(None)
    }

    /// Counts the guards, waiters, renewals, watches, subscriptions, leases and background tasks of
    /// all clients that this harness has made, as one number that must return to its baseline;
    /// `None` if they cannot be counted. Called on [`isolated`](Self::isolated) harnesses only, so
    /// that no other case disturbs the count.
    async fn client_residue(&self) -> Option<usize> {
        None
    }

    /// Removes the holder's entry behind the client's back, as an operator with the store's own
    /// tool would; `false` if this harness cannot.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn remove_entry(&self, _name: &LockName) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Removes the entries of all *waiters* of the name behind their backs, as if their leases had
    /// expired; `false` if this harness cannot, or if waiting leaves no entry in this store.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn evict_waiters(&self, _name: &LockName) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Delays every reply of the store, from now on, by at least this much, while requests arrive
    /// at once; `false` if this harness cannot. Called on [`isolated`](Self::isolated) harnesses
    /// only.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn delay_replies(&self, _by: Duration) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Secrets, such as passwords, that this harness connects with. They must not appear in any
    /// message or `Debug` output.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }

    /// Stops the store from answering without closing connections (SIGSTOP, `docker pause`);
    /// `false` if this harness cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn freeze(&self) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Undoes [`freeze`](Self::freeze).
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn thaw(&self) -> Result<(), LockError> {
        Ok(())
    }

    /// Kills the store, so that connecting to it fails; [`restart`](Self::restart) starts it again.
    /// `false` if this harness cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn stop(&self) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Kills the store without a chance to clean up and starts it again on the same data and
    /// address; `false` if this harness cannot. Called on [`isolated`](Self::isolated) harnesses
    /// only.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn restart(&self) -> Result<bool, LockError> {
        Ok(false)
    }
}
