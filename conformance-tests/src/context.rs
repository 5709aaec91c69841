use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lock_core::{AcquireOptions, Capabilities, DistributedLock, LockError, LockName};
use tokio::time::Instant;

use crate::{
    Harness, Need,
    case::{Outcome, PROMPT, Stop},
    proxy::Proxy,
    url_harness::start_proxies,
};

pub(crate) type Client = Arc<dyn DistributedLock>;

/// Context of a case: the harness, lock names of its own, and the clients that it has made.
#[derive(Clone, Debug)]
pub(crate) struct Ctx {
    harness: Arc<dyn Harness>,
    capabilities: Capabilities,
    prefix: Arc<str>,
    clients: Arc<Mutex<Vec<Client>>>,
}

impl Ctx {
    pub(crate) fn new(harness: Arc<dyn Harness>) -> Self {
        // Unique per case and process: cases share one server and run side by side, also in several
        // processes.
        let prefix = format!(
            "conformance/{:x}-{:016x}",
            std::process::id(),
            rand::random::<u64>()
        )
        .into();
        Self {
            capabilities: harness.capabilities(),
            harness,
            prefix,
            clients: Arc::default(),
        }
    }

    pub(crate) fn harness(&self) -> &dyn Harness {
        &*self.harness
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Prefix of every name of this case.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A name that no other case uses.
    pub(crate) fn name(&self, suffix: &str) -> LockName {
        self.raw_name(&format!("{}/{suffix}", self.prefix))
    }

    pub(crate) fn raw_name(&self, name: &str) -> LockName {
        LockName::new(name)
            .unwrap_or_else(|error| unreachable!("the suite's names are valid: {error}"))
    }

    /// TTL of timing cases, rounded as the store will round it.
    pub(crate) fn ttl(&self) -> Duration {
        let range = self.capabilities.ttl;
        let step = range.granularity.as_nanos().max(1);
        let nanos = self
            .harness
            .short_ttl()
            .max(range.min)
            .as_nanos()
            .div_ceil(step)
            * step;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Options with the short TTL.
    pub(crate) fn short(&self) -> AcquireOptions {
        AcquireOptions::new().with_ttl(self.ttl())
    }

    /// Time within which the next waiter must have the lock of a holder that stopped renewing.
    pub(crate) fn expiry_bound(&self) -> Duration {
        self.ttl() + self.capabilities.crash_bound + self.slack()
    }

    /// Time that a loaded machine may add to any bound.
    pub(crate) fn slack(&self) -> Duration {
        if self.harness.paused_time() {
            Duration::from_millis(20)
        } else {
            Duration::from_secs(2)
        }
    }

    pub(crate) async fn connect(&self) -> Result<Client, Stop> {
        Ok(self.connect_now().await?)
    }

    /// As [`connect`](Self::connect), with the backend's own error.
    pub(crate) async fn connect_now(&self) -> Result<Client, LockError> {
        let client = self.harness.connect().await?;
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&client));
        Ok(client)
    }

    /// Connects a client through proxies of its own.
    pub(crate) async fn connect_proxied(&self) -> Result<(Client, Vec<Proxy>), Stop> {
        let proxies = start_proxies(self.harness.addresses()).await?;
        let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
        if addresses.is_empty() {
            return Err(Stop::lacks(Need::Proxy));
        }
        let client = self.harness.connect_at(&addresses).await?;
        let client = client.ok_or_else(|| Stop::lacks(Need::Proxy))?;
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&client));
        Ok((client, proxies))
    }

    pub(crate) async fn connect_two(&self) -> Result<(Client, Client), Stop> {
        Ok((self.connect().await?, self.connect().await?))
    }

    pub(crate) async fn connect_three(&self) -> Result<(Client, Client, Client), Stop> {
        Ok((
            self.connect().await?,
            self.connect().await?,
            self.connect().await?,
        ))
    }

    /// The same case on a store of its own.
    pub(crate) async fn isolated(&self) -> Result<Self, Stop> {
        let harness = self
            .harness
            .isolated()
            .await?
            .ok_or_else(|| Stop::lacks(Need::Isolated))?;
        Ok(Self {
            capabilities: harness.capabilities(),
            harness,
            prefix: Arc::clone(&self.prefix),
            clients: Arc::clone(&self.clients),
        })
    }

    pub(crate) async fn freeze(&self) -> Outcome {
        able(self.harness.freeze().await?, Need::Freeze)
    }

    pub(crate) async fn thaw(&self) -> Outcome {
        Ok(self.harness.thaw().await?)
    }

    pub(crate) async fn stop(&self) -> Outcome {
        able(self.harness.stop().await?, Need::Stop)
    }

    pub(crate) async fn restart(&self) -> Outcome {
        able(self.harness.restart().await?, Need::Restart)
    }

    pub(crate) async fn delay_replies(&self, by: Duration) -> Outcome {
        able(self.harness.delay_replies(by).await?, Need::DelayReplies)
    }

    pub(crate) async fn remove_entry(&self, name: &LockName) -> Outcome {
        able(self.harness.remove_entry(name).await?, Need::RemoveEntry)
    }

    pub(crate) async fn evict_waiters(&self, name: &LockName) -> Outcome {
        if self.harness.evict_waiters(name).await? {
            return Ok(());
        }
        // Somebody waits. If that leaves no entry, there is nothing to evict.
        match self.harness.entries(name).await? {
            Some(entries) if entries.len() <= 1 => Err(Stop::NotApplicable(
                "a waiter has no entry in the store".into(),
            )),
            _ => Err(Stop::lacks(Need::EvictWaiters)),
        }
    }

    pub(crate) async fn entries(&self, name: &LockName) -> Result<Vec<String>, Stop> {
        self.harness
            .entries(name)
            .await?
            .ok_or_else(|| Stop::lacks(Need::Entries))
    }

    pub(crate) async fn residue(&self) -> Result<usize, Stop> {
        self.harness
            .client_residue()
            .await
            .ok_or_else(|| Stop::lacks(Need::Residue))
    }

    /// Waits until the name has at most this many entries.
    pub(crate) async fn entries_come_down_to(&self, name: &LockName, most: usize) -> Outcome {
        let mut seen = Vec::new();
        let down = within(PROMPT, async {
            loop {
                seen = self.entries(name).await?;
                if seen.len() <= most {
                    return Ok(());
                }
                tick().await;
            }
        });
        match down.await {
            Some(outcome) => outcome,
            None => Err(Stop::Fail(format!(
                "more than {most} entries were left: {seen:?}"
            ))),
        }
    }

    /// Waits until the clients' residue is back at its baseline.
    pub(crate) async fn residue_comes_down_to(&self, baseline: usize) -> Outcome {
        let mut seen = 0;
        let down = within(PROMPT, async {
            loop {
                seen = self.residue().await?;
                if seen <= baseline {
                    return Ok(());
                }
                tick().await;
            }
        });
        match down.await {
            Some(outcome) => outcome,
            None => Err(Stop::Fail(format!(
                "the clients' residue stays at {seen}, the baseline was {baseline}"
            ))),
        }
    }

    /// Shuts down what the case has left, so that the next one on the same server is not slowed
    /// down.
    pub(crate) async fn tidy_up(&self) {
        let clients =
            std::mem::take(&mut *self.clients.lock().unwrap_or_else(PoisonError::into_inner));
        for client in clients {
            let _ = within(Duration::from_secs(3), client.shutdown()).await;
        }
    }
}

fn able(can: bool, need: Need) -> Outcome {
    if can { Ok(()) } else { Err(Stop::lacks(need)) }
}

/// Sleeps for one step of waiting for a condition.
pub(crate) async fn tick() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Returns the future's output, or `None` when the time is up.
pub(crate) async fn within<T>(bound: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(bound, future).await.ok()
}

/// Waits for a condition; fails with `what` if it does not come true in time.
pub(crate) async fn eventually(
    what: &str,
    bound: Duration,
    mut condition: impl FnMut() -> bool,
) -> Outcome {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > bound {
            return Err(Stop::Fail(format!(
                "did not happen within {bound:?}: {what}"
            )));
        }
        tick().await;
    }
    Ok(())
}

/// Checks at every step, for the whole span, that a condition stays true.
pub(crate) async fn throughout(
    what: &str,
    span: Duration,
    mut condition: impl FnMut() -> bool,
) -> Outcome {
    let start = Instant::now();
    while start.elapsed() < span {
        if !condition() {
            return Err(Stop::Fail(format!(
                "ceased after {:?}: {what}",
                start.elapsed()
            )));
        }
        tick().await;
    }
    Ok(())
}
