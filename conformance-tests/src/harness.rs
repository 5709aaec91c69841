use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{Capabilities, DistributedLock, LockError, LockName};

/// What a backend author supplies: how to reach the store, and as much trouble as the store can be put into.
#[async_trait]
pub trait Harness: Debug + Send + Sync + 'static {
    /// What the backend declares; selects the cases.
    fn capabilities(&self) -> Capabilities;

    /// A new client of the store: independent of the others, as if from another process.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError>;

    /// The TTL that timing cases use: the shortest that the store keeps reliably on a loaded machine.
    fn short_ttl(&self) -> Duration {
        self.capabilities().ttl.min.max(Duration::from_secs(2))
    }

    /// Whether cases run under tokio's paused clock: for backends on [`lock_core::backend::Clock::Tokio`]. The start
    /// function is then called anew in each case's own runtime, so that no two cases share a clock.
    fn paused_time(&self) -> bool {
        false
    }

    /// How a child process reaches the same store: handed to the start function in the child, whose harness then connects
    /// to that store and starts none. `None` if no other process can.
    fn child_address(&self) -> Option<String> {
        None
    }

    /// The same kind of harness on a store of its own, which ends when the harness is dropped: for cases whose faults or
    /// counts would disturb others, or be disturbed. `None` if there is only one store, and then such cases are skipped.
    ///
    /// # Errors
    ///
    /// Why no second store could be started.
    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        Ok(None)
    }

    /// The entries that this name has in the store, holders and waiters, in any notation; `None` if that cannot be told.
    /// What is meant to stay, such as a token counter, does not count.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn entries(&self, _name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        Ok(None)
    }

    /// Guards, waiters, renewals, watches, subscriptions, leases and background tasks of all clients that this harness
    /// has made, as one number that must return to its baseline; `None` if that cannot be told. Called on
    /// [`isolated`](Self::isolated) harnesses only, so that no other case disturbs the count.
    async fn client_residue(&self) -> Option<usize> {
        None
    }

    /// Removes the holder's entry behind the client's back, as an operator with the store's own tool would; `false`
    /// if this harness cannot.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn remove_entry(&self, _name: &LockName) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Removes the entries of all *waiters* of the name behind their backs, as if their leases had expired; `false` if
    /// this harness cannot, or if waiting leaves no entry in this store.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn evict_waiters(&self, _name: &LockName) -> Result<bool, LockError> {
        Ok(false)
    }

    /// From now on every reply of the store takes at least this much longer, while requests arrive at once; `false` if
    /// this harness cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// Why it failed.
    async fn delay_replies(&self, _by: Duration) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Passwords and the like that this harness connects with: must not appear in any message or `Debug` output.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }

    /// Stops the store from answering without closing connections (SIGSTOP, `docker pause`); `false` if this harness
    /// cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// Why it failed.
    async fn freeze(&self) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Undoes [`freeze`](Self::freeze).
    ///
    /// # Errors
    ///
    /// Why it failed.
    async fn thaw(&self) -> Result<(), LockError> {
        Ok(())
    }

    /// Kills the store, so that connecting to it fails; [`restart`](Self::restart) starts it again. `false` if this harness
    /// cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// Why it failed.
    async fn stop(&self) -> Result<bool, LockError> {
        Ok(false)
    }

    /// Kills the store without a chance to clean up and starts it again on the same data and address; `false` if this
    /// harness cannot. Called on [`isolated`](Self::isolated) harnesses only.
    ///
    /// # Errors
    ///
    /// Why it failed.
    async fn restart(&self) -> Result<bool, LockError> {
        Ok(false)
    }
}
