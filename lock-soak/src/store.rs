use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    BoxError,
    schedule::{Cut, Side},
};

mod etcd;
mod redis;

/// A store that is soaked: what the faults need of it. Members are numbered from 0.
#[async_trait]
pub(crate) trait Store: Debug + Send + Sync {
    /// What clients connect to, without parameters.
    fn url(&self) -> String;
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
    /// What an operator does from time to time to a store that works.
    async fn chore(&self) -> Result<(), BoxError>;
    /// Everything that is in the store and does not belong there when all clients have left, in words.
    async fn contents(&self) -> Result<Vec<String>, BoxError>;
}

/// How many members the store of a target has.
pub(crate) fn members(target: &str) -> usize {
    match target {
        "etcd" => etcd::SIZE,
        _ => 1,
    }
}

/// Starts the store of a target.
pub(crate) async fn start(target: &str) -> Result<Arc<dyn Store>, BoxError> {
    match target {
        "etcd" => Ok(Arc::new(etcd::Etcd::start().await?)),
        "redis" => Ok(Arc::new(redis::Redis::start().await?)),
        _ => Err(format!("there is no target {target}").into()),
    }
}
