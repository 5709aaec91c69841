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
use lock_core::backend::{Clock, Holds, Moment, Tasks};
use redis::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Failure, held::Found, keys::Keys, link::Connection, quorum::majority::Majority, scripts, servers::Servers, watcher::Reader,
};

/// One of the independent servers.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) servers: Servers,
    limit: Duration,
    /// It did not answer the last request in time.
    suspect: AtomicBool,
}

/// All of them.
pub(crate) struct Members {
    all: Vec<Arc<Member>>,
    /// How long each has for an answer.
    pub(crate) limit: Duration,
    tasks: Tasks,
    closing: CancellationToken,
}

const CLOCK: Clock = Clock::Suspend;

impl Member {
    pub(crate) fn new(address: String, servers: Servers, limit: Duration) -> Self {
        Self { address, servers, limit, suspect: AtomicBool::new(false) }
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// The connection for commands, if it can be had in time.
    pub(crate) async fn connection(&self, key: &str) -> Result<Connection, Failure> {
        self.in_time(async { self.servers.route(key).commands().await }).await
    }

    /// The connection over which the server reports changes of what is read.
    pub(crate) async fn tracking(&self, key: &str) -> Result<Connection, Failure> {
        self.in_time(async { self.servers.route(key).tracking().await }).await
    }

    /// What [`scripts::INSPECT`] says; asks once more if the connection is found broken.
    pub(crate) async fn look(&self, keys: &Keys) -> Result<Value, Failure> {
        let once = || async {
            let answer = self.connection(&keys.lock).await?.run_script(&scripts::INSPECT, keys, |_| {}).await;
            self.heard(answer)
        };
        let answer = match once().await {
            Err(failure) if failure.sent && failure.ends_connection() => once().await,
            answer => answer,
        };
        answer.map_err(Failure::without_effect)
    }

    async fn in_time(&self, connecting: impl Future<Output = Result<Connection, Failure>>) -> Result<Connection, Failure> {
        let connected = tokio::time::timeout(self.limit, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(Failure::timed_out().without_effect()));
        match connected {
            Ok(connection) => Ok(connection),
            failed => self.heard(failed),
        }
    }

    /// Passes on the outcome of a request, and notes whether the server answers.
    pub(crate) fn heard<T>(&self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.suspect.store(outcome.as_ref().is_err_and(Failure::is_timeout), Relaxed);
        outcome
    }
}

impl Members {
    pub(crate) fn new(all: Vec<Arc<Member>>, limit: Duration, holds: &Holds) -> Self {
        Self { all, limit, tasks: holds.tasks().clone(), closing: holds.closing().clone() }
    }

    pub(crate) fn majority(&self) -> Majority {
        Majority::of(self.all.len())
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Member>> {
        self.all.iter()
    }

    /// Which have not answered lately.
    pub(crate) fn suspects(&self) -> Vec<bool> {
        self.all.iter().map(|member| member.is_suspect()).collect()
    }

    /// Which to wait for: all, but for a minority that has not answered lately.
    pub(crate) fn worth_waiting_for(&self) -> Vec<bool> {
        let suspects = self.suspects();
        let many = suspects.iter().filter(|suspect| **suspect).count() >= self.majority().blocking();
        suspects.into_iter().map(|suspect| many || !suspect).collect()
    }

    /// Asks all at once. What has been asked goes on to its end although the answers are not waited for, unless the client
    /// is closed.
    pub(crate) fn ask<T, F>(&self, ask: impl Fn(Arc<Member>) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        self.ask_within(self.limit, ask)
    }

    pub(crate) fn ask_within<T, F>(&self, limit: Duration, ask: impl Fn(Arc<Member>) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let until = CLOCK.now() + limit;
        for (at, member) in self.all.iter().enumerate() {
            let (asking, sender, closing) = (ask(Arc::clone(member)), sender.clone(), self.closing.clone());
            self.tasks.spawn(async move {
                // A silent server does not hold up a shutdown.
                let unwanted = async {
                    closing.cancelled().await;
                    sender.closed().await;
                };
                tokio::select! {
                    // Telling fails when nobody waits for the answers any more.
                    answer = asking => drop(sender.send((at, answer))),
                    () = unwanted => {}
                }
            });
        }
        Answers { receiver, until, failures: Vec::new() }
    }

    pub(crate) fn close(&self) {
        self.all.iter().for_each(|member| member.servers.close());
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|member| (&member.address, member.is_suspect()))).finish()
    }
}

/// What the servers answer, as it comes.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    receiver: mpsc::UnboundedReceiver<(usize, Result<T, Failure>)>,
    until: Moment,
    /// Of those that failed so far.
    pub(crate) failures: Vec<(usize, Failure)>,
}

impl<T> Answers<T> {
    /// The next server's answer, `None` in it if that failed; ends when all have answered or the time is up.
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
impl Reader for Members {
    /// Waits for no more answers than it takes to tell, for nothing else is read meanwhile.
    async fn read(&self, keys: &[Arc<str>]) -> Vec<Found> {
        let (keys, majority): (Arc<[_]>, _) = (keys.into(), self.majority());
        let mut answers = self.ask(|member| {
            let keys = Arc::clone(&keys);
            async move { Ok(member.servers.read(&keys).await) }
        });
        let (mut found, mut open) = (vec![Vec::new(); keys.len()], majority.servers());
        let mut unanswered = self.worth_waiting_for();
        while unanswered.contains(&true) && !found.iter().all(|values| is_settled(majority, values, open)) {
            let Some((server, read)) = answers.next().await else {
                // The next read does not wait for them.
                for (member, _) in self.all.iter().zip(unanswered).filter(|(_, silent)| *silent) {
                    member.suspect.store(true, Relaxed);
                }
                break;
            };
            (unanswered[server], open) = (false, open - 1);
            for (values, value) in found.iter_mut().zip(read.unwrap_or_default()) {
                values.extend(value);
            }
        }
        found.iter().map(|values| common_value(majority, values)).collect()
    }
}

/// The value whose owner may still have a majority, when that is at most one; `None` if too few servers answered to tell.
fn common_value(majority: Majority, values: &[Option<Vec<u8>>]) -> Found {
    if values.len() < majority.blocking() {
        return None;
    }
    let mut possible: Vec<_> = values.iter().flatten().filter(|value| others(values, value) < majority.blocking()).collect();
    possible.sort_unstable();
    possible.dedup();
    match possible.as_slice() {
        [] => Some(None),
        [one] => Some(Some((*one).clone())),
        _ => None,
    }
}

/// Whether [`common_value`] stays what it is, whatever the servers say that have not answered.
fn is_settled(majority: Majority, values: &[Option<Vec<u8>>], open: usize) -> bool {
    match common_value(majority, values) {
        Some(Some(value)) => others(values, &value) + open < majority.blocking(),
        Some(None) => true,
        None => open == 0,
    }
}

/// How many do not have the value.
fn others(values: &[Option<Vec<u8>>], value: &[u8]) -> usize {
    values.iter().filter(|other| other.as_deref() != Some(value)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(servers: usize, values: &[&str]) -> Option<Option<String>> {
        let values: Vec<_> = values.iter().map(|value| (!value.is_empty()).then(|| value.as_bytes().to_vec())).collect();
        let found = common_value(Majority::of(servers), &values);
        found.map(|value| value.map(|value| String::from_utf8(value).unwrap()))
    }

    #[test]
    fn an_owner_is_ruled_out_by_as_many_as_prevent_its_majority() {
        let held = Some(Some("a".to_owned()));
        assert_eq!(common(3, &["a", "a", "a"]), held);
        assert_eq!(common(3, &["a", "a"]), held, "one is silent");
        assert_eq!(common(3, &["a", ""]), held, "the silent one may have it");
        assert_eq!(common(3, &["a", "", ""]), Some(None));
        assert_eq!(common(3, &["a", "b", "c"]), Some(None));
        assert_eq!(common(3, &["b", "b", "a"]), Some(Some("b".to_owned())));
        assert_eq!(common(3, &["a"]), None, "too few to tell");
        assert_eq!(common(5, &["a", "a", "b"]), None, "either may have a majority");
        assert_eq!(common(4, &["a", "a", "", ""]), Some(None), "two of four are none");
    }

    /// Every sequence of answers and failures: what is settled does not change, and a majority settles it.
    #[test]
    fn what_is_settled_is_final() {
        for servers in 3..=5_usize {
            let majority = Majority::of(servers);
            for history in 0..4_usize.pow(servers as u32) {
                let (mut values, mut settled) = (Vec::new(), None);
                for at in 0..servers {
                    match history / 4_usize.pow(at as u32) % 4 {
                        0 => {}
                        1 => values.push(None),
                        owner => values.push(Some(vec![owner as u8])),
                    }
                    let found = common_value(majority, &values);
                    let agree = values.iter().flatten().any(|value| values.len() - others(&values, value) >= majority.needed());
                    let is_settled = is_settled(majority, &values, servers - at - 1);
                    assert!(
                        settled.as_ref().is_none_or(|settled| *settled == found && is_settled),
                        "{history}: {settled:?}, then {found:?}"
                    );
                    assert!(is_settled || (at + 1 < servers && !agree), "{history}: {values:?}");
                    settled = is_settled.then_some(found);
                }
            }
        }
    }
}
