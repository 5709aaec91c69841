use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    BoxError,
    migration::Migration,
    schedule::{Act, Cut, Link, Removal, Return, Side},
};

mod etcd;
mod migrate;
mod redis;

/// The interface that the faults need of a store under soak. Members are numbered from 0.
#[async_trait]
pub(crate) trait Store: Debug + Send + Sync {
    /// URL that clients connect to.
    fn url(&self, ttl: Duration) -> String;
    /// URL that the clients of one of the workers connect to.
    fn url_of_worker(&self, _worker: usize, ttl: Duration) -> String {
        self.url(ttl)
    }
    /// Cuts one worker off from stores that the others reach; `None` heals it.
    fn cut_worker_off(&self, _worker: usize, _link: Option<Link>) {}
    /// Takes clients from one store to the other and back, again and again; never ends.
    async fn migrate(&self, _terms: &Migration) -> Result<(), BoxError> {
        std::future::pending().await
    }
    /// Shows the migration once a second; never ends.
    async fn show(&self, _terms: &Migration) -> Result<(), BoxError> {
        std::future::pending().await
    }
    /// Takes everything back when all workers have ended, and removes the traces.
    async fn end_migration(&self, _terms: &Migration) -> Result<(), BoxError> {
        Ok(())
    }
    async fn leader(&self) -> Result<usize, BoxError>;
    fn kill(&self, member: usize) -> Result<(), BoxError>;
    /// Starts a killed member again on its data; does not wait until it serves.
    fn start(&self, member: usize) -> Result<(), BoxError>;
    fn pause(&self, member: usize) -> Result<(), BoxError>;
    fn resume(&self, member: usize) -> Result<(), BoxError>;
    fn cut(&self, member: usize, side: Side, cut: Cut);
    fn delay(&self, member: usize, by: Duration);
    fn heal(&self, member: usize);
    async fn wait_healthy(&self) -> Result<(), BoxError>;
    /// The longest pause of a leader that the store is known to survive; `None` if it survives any.
    fn longest_leader_pause(&self, ttl: Duration) -> Option<Duration>;
    /// True if the store answers clients; it is asked on a path that no fault touches. `None` where
    /// each fault says it well enough.
    async fn serves(&self) -> Option<bool> {
        None
    }
    /// A number that every election changes, if the store has one.
    async fn term(&self) -> Option<u64> {
        None
    }
    /// Does what an operator does to a store that works. If that takes something away from clients,
    /// gives it back after a while.
    async fn act(&self, act: Act, lasts: Duration) -> Result<(), BoxError>;
    /// Saves what [`put_back`](Self::put_back) needs, while the store works.
    async fn back_up(&self, to: Return) -> Result<(), BoxError>;
    /// Replaces the data of all members, none of which is running, and starts them; does not wait
    /// until they serve.
    async fn put_back(&self, to: Return) -> Result<(), BoxError>;
    /// True if tokens go back with the store, in which case its clients lose all guards.
    fn forgets_tokens(&self) -> bool;
    /// Entries of the store, one for each lock in the order of their numbers, read on a path that
    /// no fault touches; empty where only the clients themselves know.
    async fn entries(&self, _registers: u32) -> Result<Vec<Entry>, BoxError> {
        Ok(Vec::new())
    }
    /// Removes the entry of an acquisition, as an operator might; `false` if it was no longer
    /// there.
    async fn remove(
        &self,
        _register: u32,
        _token: u64,
        _removal: Removal,
    ) -> Result<bool, BoxError> {
        Err("the entries of this store are not taken away".into())
    }
    /// Time after the cause of an error for which a call with a TTL may still fail.
    fn wait_limit(&self) -> fn(Duration) -> Duration;
    /// True if a waiter has a free lock at once when all is well.
    fn prompt(&self) -> bool;
    /// Two times within which leftovers of clients are gone: of those that ended well, since their
    /// end, and of the others, since they were killed.
    fn settles(&self, ttl: Duration) -> (Duration, Duration);
    /// Everything in the store that does not belong there when all clients have left, in words.
    async fn contents(&self) -> Result<Vec<String>, BoxError>;
}

/// Entry that the store has for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// No entry, or one that belongs to no client.
    Foreign,
    /// The entry of the acquisition with this token, which ends after this time.
    Of { token: u64, left: Duration },
}

/// Number of members of the store of a target.
pub(crate) fn members(target: &str) -> usize {
    match target {
        "etcd" | "migrate" => etcd::SIZE,
        _ => 1,
    }
}

/// Operations that an operator may carry out on the store of a target.
pub(crate) fn acts(target: &str, seed: u64) -> &'static [Act] {
    match target {
        "etcd" => etcd::acts(seed),
        "migrate" => migrate::ACTS,
        _ => redis::ACTS,
    }
}

/// Ways in which the store of a target may go back.
pub(crate) fn returns(target: &str, seed: u64) -> &'static [Return] {
    match target {
        "etcd" => etcd::returns(seed),
        // What one store forgets the other does not know: a migration declares that it is lost.
        "migrate" => &[],
        _ => redis::RETURNS,
    }
}

/// Starts the store of a target for this number of workers.
pub(crate) async fn start(
    target: &str,
    seed: u64,
    workers: usize,
) -> Result<Arc<dyn Store>, BoxError> {
    match target {
        "etcd" => Ok(Arc::new(etcd::Etcd::start(seed).await?)),
        "migrate" => Ok(Arc::new(migrate::Migrate::start(seed, workers).await?)),
        "redis" => Ok(Arc::new(redis::Redis::start().await?)),
        _ => Err(format!("there is no target {target}").into()),
    }
}
