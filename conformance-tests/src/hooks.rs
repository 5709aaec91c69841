use std::fmt::Debug;

use async_trait::async_trait;
use lock_core::{LockError, LockName};

/// Access to the store behind the clients' backs, with the store's own tools.
#[async_trait]
pub trait Operator: Debug + Send + Sync + 'static {
    /// Lists the entries that this name has in the store, of holders and waiters, in any notation.
    /// Data that is meant to stay, such as a token counter, does not count.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn entries(&self, name: &LockName) -> Result<Vec<String>, LockError>;

    /// Removes the holder's entry.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn remove(&self, name: &LockName) -> Result<(), LockError>;

    /// Removes the entries of all waiters of the name, as if their leases had ended. Not called
    /// where waiting leaves no entry.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn evict_waiters(&self, _name: &LockName) -> Result<(), LockError> {
        Ok(())
    }
}

/// Control of the store's server. Cases that use it run alone.
#[async_trait]
pub trait Server: Debug + Send + Sync + 'static {
    /// Starts another server like this one on an address of its own, and returns it with its URL.
    /// It ends when it is dropped.
    ///
    /// # Errors
    ///
    /// The reason why it did not start.
    async fn another(&self) -> Result<(Box<dyn Server>, String), LockError>;

    /// Kills the server, without a chance to clean up.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn stop(&self) -> Result<(), LockError>;

    /// Starts a stopped server again, on the same data and address.
    ///
    /// # Errors
    ///
    /// The reason why it failed.
    async fn start(&self) -> Result<(), LockError>;
}
