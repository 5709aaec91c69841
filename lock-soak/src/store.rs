use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    BoxError,
    schedule::{Act, Cut, Removal, Return, Side},
};

mod etcd;
mod redis;

/// A store that is soaked: what the faults need of it. Members are numbered from 0.
#[async_trait]
pub(crate) trait Store: Debug + Send + Sync {
    /// What clients connect to.
    fn url(&self, ttl: Duration) -> String;
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
    /// The longest pause of a leader that the store is known to survive; `None` for any.
    fn longest_leader_pause(&self, ttl: Duration) -> Option<Duration>;
    /// Whether it answers clients; asked on a way that no fault touches. `None` where each fault says it well enough.
    async fn serves(&self) -> Option<bool> {
        None
    }
    /// A number that every election changes, if it has any.
    async fn term(&self) -> Option<u64> {
        None
    }
    /// Does what an operator does to a store that works, and takes back after a while what takes something away.
    async fn act(&self, act: Act, lasts: Duration) -> Result<(), BoxError>;
    /// Keeps what [`put_back`](Self::put_back) needs, while the store works.
    async fn back_up(&self, to: Return) -> Result<(), BoxError>;
    /// Replaces the data of all members, none of which runs.
    async fn put_back(&self, to: Return) -> Result<(), BoxError>;
    /// Whether its tokens go back with it, and its clients lose all guards then.
    fn forgets_tokens(&self) -> bool;
    /// What the store has for each lock, in the order of their numbers, on a way that no fault touches; nothing where only the clients
    /// themselves know.
    async fn entries(&self, _registers: u32) -> Result<Vec<Entry>, BoxError> {
        Ok(Vec::new())
    }
    /// Takes the entry of an acquisition away, as an operator might; `false` if it was not there any more.
    async fn remove(&self, _register: u32, _token: u64, _removal: Removal) -> Result<bool, BoxError> {
        Err("the entries of this store are not taken away".into())
    }
    /// How long after its cause a call with a TTL may still fail.
    fn patience(&self) -> fn(Duration) -> Duration;
    /// Whether a waiter has a free lock at once when all is well.
    fn prompt(&self) -> bool;
    /// Within which time all is gone that clients leave behind which came to a good end, and within which, since they were killed,
    /// that of the others.
    fn settles(&self, ttl: Duration) -> (Duration, Duration);
    /// Everything that is in the store and does not belong there when all clients have left, in words.
    async fn contents(&self) -> Result<Vec<String>, BoxError>;
}

/// What the store has for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// None, or one that is no client's.
    Foreign,
    /// That of the acquisition with this token, which ends after this time.
    Of { token: u64, left: Duration },
}

/// How many members the store of a target has.
pub(crate) fn members(target: &str) -> usize {
    match target {
        "etcd" => etcd::SIZE,
        _ => 1,
    }
}

/// What operators of the store of a target may do to it.
pub(crate) fn acts(target: &str, seed: u64) -> &'static [Act] {
    match target {
        "etcd" => etcd::acts(seed),
        _ => redis::ACTS,
    }
}

/// How it may go back.
pub(crate) fn returns(target: &str, seed: u64) -> &'static [Return] {
    match target {
        "etcd" => etcd::returns(seed),
        _ => redis::RETURNS,
    }
}

/// Starts the store of a target.
pub(crate) async fn start(target: &str, seed: u64) -> Result<Arc<dyn Store>, BoxError> {
    match target {
        "etcd" => Ok(Arc::new(etcd::Etcd::start(seed).await?)),
        "redis" => Ok(Arc::new(redis::Redis::start().await?)),
        _ => Err(format!("there is no target {target}").into()),
    }
}
