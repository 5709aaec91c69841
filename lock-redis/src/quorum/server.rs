use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use lock_core::backend::{Clock, GuardSet, Moment, Signal, Tasks};
use redis::Value;
use tokio::sync::mpsc;

use crate::{
    error::Failure, keys, keys::Keys, quorum::majority::Majority, scripts,
    transport::connection::once_more, transport::reconnect::Connection,
    transport::routing::Servers, waiters::tracking::Reader, waiters::watched_keys::ReadValue,
};

/// One of the independent servers.
#[derive(Debug)]
pub(crate) struct QuorumServer {
    pub(crate) address: String,
    pub(crate) servers: Servers,
    limit: Duration,
    /// It did not answer the last request in time.
    silent: AtomicBool,
}

/// All of them.
pub(crate) struct QuorumServers {
    all: Vec<Arc<QuorumServer>>,
    /// Time that each has for an answer.
    pub(crate) limit: Duration,
    tasks: Tasks,
    closing: Signal,
}

const CLOCK: Clock = Clock::Suspend;

impl QuorumServer {
    pub(crate) fn new(address: String, servers: Servers, limit: Duration) -> Self {
        Self {
            address,
            servers,
            limit,
            silent: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }

    /// The connection for commands, if it can be had in time.
    pub(crate) async fn connection(&self, key: &str) -> Result<Connection, Failure> {
        self.in_time(async { self.servers.route(key).commands().await })
            .await
    }

    /// The connection for renewals.
    pub(crate) async fn renewals(&self, key: &str) -> Result<Connection, Failure> {
        self.in_time(async { self.servers.route(key).renewals().await })
            .await
    }

    /// The connection over which the server reports changes of what is read.
    pub(crate) async fn tracking(&self, key: &str) -> Result<Connection, Failure> {
        self.in_time(async { self.servers.route(key).tracking().await })
            .await
    }

    /// The same; where the server or an access rule does not allow that, the other one, and that
    /// nothing is reported.
    pub(crate) async fn tracking_or_commands(
        &self,
        key: &str,
    ) -> Result<(Connection, bool), Failure> {
        match self.tracking(key).await {
            Ok(connection) => Ok((connection, true)),
            Err(failure) if failure.is_refusal() => Ok((self.connection(key).await?, false)),
            Err(failure) => Err(failure),
        }
    }

    /// Returns what [`scripts::INSPECT`] says, and whether the lock's next change is reported, if
    /// it is to be `tracked`; asks once more if the connection is found broken.
    pub(crate) async fn look(&self, keys: &Keys, tracked: bool) -> Result<(Value, bool), Failure> {
        let ask = || async {
            let (connection, tracked) = match tracked {
                true => self.tracking_or_commands(&keys.lock).await?,
                false => (self.connection(&keys.lock).await?, false),
            };
            let answer = connection.run_script(&scripts::INSPECT, keys, |_| {}).await;
            Ok::<_, Failure>((self.heard(answer)?, tracked))
        };
        once_more(ask).await.map_err(Failure::without_effect)
    }

    async fn in_time(
        &self,
        connecting: impl Future<Output = Result<Connection, Failure>>,
    ) -> Result<Connection, Failure> {
        match tokio::time::timeout(self.limit, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(failed) => self.heard(failed),
            Err(_) => {
                self.silent.store(true, Relaxed);
                let known = self.servers.failure();
                Err(known.unwrap_or_else(|| Failure::timed_out().without_effect()))
            }
        }
    }

    /// Passes on the outcome of a request, and notes whether the server answers.
    pub(crate) fn heard<T>(&self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.silent
            .store(outcome.as_ref().is_err_and(Failure::is_timeout), Relaxed);
        outcome
    }
}

impl QuorumServers {
    pub(crate) fn new(all: Vec<Arc<QuorumServer>>, limit: Duration, guards: &GuardSet) -> Self {
        Self {
            all,
            limit,
            tasks: guards.tasks().clone(),
            closing: guards.closing().clone(),
        }
    }

    pub(crate) fn majority(&self) -> Majority {
        Majority::of(self.all.len())
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<QuorumServer>> {
        self.all.iter()
    }

    pub(crate) fn server(&self, at: usize) -> &Arc<QuorumServer> {
        &self.all[at]
    }

    /// Servers that may keep the queue of this lock, the first that can be asked first: all clients
    /// have the same order. Those that have not answered lately are left out.
    pub(crate) fn queue_order(&self, key: &str) -> impl Iterator<Item = usize> + use<> {
        let first = usize::from(keys::slot(key));
        let silent = self.silent();
        let count = silent.len();
        (first..first + count)
            .map(move |at| at % count)
            .filter(move |at| !silent[*at])
    }

    /// Servers that have not answered lately.
    pub(crate) fn silent(&self) -> Vec<bool> {
        self.all.iter().map(|member| member.is_silent()).collect()
    }

    /// Servers to wait for: all, but for a minority that has not answered lately.
    pub(crate) fn responsive(&self) -> Vec<bool> {
        let silent = self.silent();
        let many = silent.iter().filter(|silent| **silent).count() >= self.majority().blocking();
        silent.into_iter().map(|silent| many || !silent).collect()
    }

    /// Asks all at once. What has been asked goes on to its end although the answers are not waited
    /// for, unless the client is closed.
    pub(crate) fn ask<T, F>(&self, ask: impl Fn(Arc<QuorumServer>) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        self.ask_within(self.limit, ask)
    }

    pub(crate) fn ask_within<T, F>(
        &self,
        limit: Duration,
        ask: impl Fn(Arc<QuorumServer>) -> F,
    ) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let until = CLOCK.now() + limit;
        for (at, member) in self.all.iter().enumerate() {
            let asking = ask(Arc::clone(member));
            let sender = sender.clone();
            let closing = self.closing.clone();
            self.tasks.spawn(async move {
                // A silent server does not hold up a shutdown.
                let unwanted = async {
                    closing.fired().await;
                    sender.closed().await;
                };
                tokio::select! {
                    // Telling fails when nobody waits for the answers any more.
                    answer = asking => drop(sender.send((at, answer))),
                    () = unwanted => {}
                }
            });
        }
        Answers {
            receiver,
            until,
            failures: Vec::new(),
        }
    }

    pub(crate) fn close(&self) {
        self.all.iter().for_each(|member| member.servers.close());
    }
}

impl fmt::Debug for QuorumServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.all
                    .iter()
                    .map(|member| (&member.address, member.is_silent())),
            )
            .finish()
    }
}

/// Stream of the servers' answers, as they come.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    receiver: mpsc::UnboundedReceiver<(usize, Result<T, Failure>)>,
    until: Moment,
    /// Of those that failed so far.
    pub(crate) failures: Vec<(usize, Failure)>,
}

impl<T> Answers<T> {
    /// The next server's answer, `None` in it if that failed; ends when all have answered or the
    /// time is up.
    pub(crate) async fn next(&mut self) -> Option<(usize, Option<T>)> {
        let (server, answer) = tokio::select! {
            biased;
            answer = self.receiver.recv() => answer?,
            () = CLOCK.sleep_until(self.until) => return None,
        };
        Some(match answer {
            Ok(answer) => (server, Some(answer)),
            Err(failure) => {
                self.failures.push((server, failure));
                (server, None)
            }
        })
    }
}

#[async_trait]
impl Reader for QuorumServers {
    /// Waits for no more answers than it takes to tell, for nothing else is read meanwhile.
    async fn read(&self, keys: &[Arc<str>]) -> Vec<ReadValue> {
        let (keys, majority): (Arc<[_]>, _) = (keys.into(), self.majority());
        let mut answers = self.ask(|member| {
            let keys = Arc::clone(&keys);
            async move { Ok(member.servers.read(&keys).await) }
        });
        let mut found = vec![Vec::new(); keys.len()];
        let mut open = majority.servers();
        let mut unanswered = self.responsive();
        while unanswered.contains(&true)
            && !found
                .iter()
                .all(|values| is_settled(majority, values, open))
        {
            let Some((server, read)) = answers.next().await else {
                // The next read does not wait for them.
                for (member, _) in self
                    .all
                    .iter()
                    .zip(unanswered)
                    .filter(|(_, silent)| *silent)
                {
                    member.silent.store(true, Relaxed);
                }
                break;
            };
            (unanswered[server], open) = (false, open - 1);
            for (values, value) in found.iter_mut().zip(read.unwrap_or_default()) {
                values.extend(value);
            }
        }
        found
            .iter()
            .map(|values| common_value(majority, values))
            .collect()
    }
}

/// The value whose owner may still have a majority, when that is at most one; `None` if too few
/// servers answered to tell.
fn common_value(majority: Majority, values: &[Option<Vec<u8>>]) -> ReadValue {
    if values.len() < majority.blocking() {
        return None;
    }
    let mut possible: Vec<_> = values
        .iter()
        .flatten()
        .filter(|value| others(values, value) < majority.blocking())
        .collect();
    possible.sort_unstable();
    possible.dedup();
    match possible.as_slice() {
        [] => Some(None),
        [one] => Some(Some((*one).clone())),
        _ => None,
    }
}

/// Returns whether [`common_value`] stays what it is, whatever the servers say that have not
/// answered.
fn is_settled(majority: Majority, values: &[Option<Vec<u8>>], open: usize) -> bool {
    match common_value(majority, values) {
        Some(Some(value)) => others(values, &value) + open < majority.blocking(),
        Some(None) => true,
        None => open == 0,
    }
}

/// Returns how many do not have the value.
fn others(values: &[Option<Vec<u8>>], value: &[u8]) -> usize {
    values
        .iter()
        .filter(|other| other.as_deref() != Some(value))
        .count()
}

#[cfg(test)]
mod tests;
