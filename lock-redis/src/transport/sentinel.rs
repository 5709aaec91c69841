use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use lock_core::backend::{Tasks, locked};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Value};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    error::Failure,
    transport::address::{Address, shown},
    transport::reconnect::{Connection, Shared},
    transport::sentinel_view::{KnownMaster, SentinelReport, Survey, most_specific},
};

/// The sentinels of one service: they know which server is its master, and tell when that changes.
pub(crate) struct Sentinels {
    service: String,
    sentinels: Vec<ConnectionInfo>,
    /// Settings of the service's own servers, whichever they are.
    servers: ConnectionInfo,
    /// For the answer of one sentinel, its connection included.
    limit: Duration,
    master: watch::Sender<Option<KnownMaster>>,
    links: Mutex<Vec<Weak<Shared>>>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// Time to wait for the other sentinels when most have answered.
const GRACE: Duration = Duration::from_millis(250);

/// Interval at which to ask although no sentinel reported anything.
const RECHECK: Duration = Duration::from_secs(10);

/// Until a lost subscription is made again, at the next sentinel.
const PAUSE: Duration = Duration::from_secs(1);

/// Channel on which sentinels publish that a service has got another master.
const SWITCHED: &str = "+switch-master";

impl Sentinels {
    pub(crate) fn new(
        service: String,
        sentinels: Vec<ConnectionInfo>,
        servers: ConnectionInfo,
        limit: Duration,
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        let master = watch::Sender::new(None);
        let links = Mutex::default();
        Arc::new(Self {
            service,
            sentinels,
            servers,
            limit,
            master,
            links,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Returns how to connect to one of the service's servers.
    pub(crate) fn info(&self, server: &Address) -> ConnectionInfo {
        server.with_settings_of(&self.servers)
    }

    /// Asks all sentinels, and tells which master is taken for current now: not that of a report
    /// which is older than what is known.
    pub(crate) async fn find_master(&self) -> Result<Arc<Address>, Failure> {
        let began = Instant::now();
        let mut reports = Vec::new();
        let mut failures = Vec::new();
        for report in self.ask_all().await {
            match report {
                Ok(report) => reports.push(report),
                Err(failure) => failures.push(failure),
            }
        }
        self.consider(&Survey {
            began,
            ended: Instant::now(),
            sentinels: self.sentinels.len(),
            reports,
        })
        .ok_or_else(|| most_specific(failures))
    }

    /// Fails unless the server takes itself for a master: one that was demoted, or is to be, may be
    /// named for a while.
    pub(crate) async fn check_role(connection: &Connection) -> Result<(), Failure> {
        match connection.run(&redis::cmd("ROLE")).await? {
            Value::Array(parts) => match parts.first() {
                Some(Value::BulkString(role)) if role == b"master" => Ok(()),
                _ => Err(Failure::not_a_master()),
            },
            _ => Err(Failure::unexpected("no role in answer to ROLE")),
        }
    }

    pub(crate) fn is_master(&self, address: &Address) -> bool {
        is(self.master.borrow().as_ref(), address)
    }

    pub(crate) async fn until_not(&self, address: &Address) {
        // Its sender is in `self`.
        let _ = self
            .master
            .subscribe()
            .wait_for(|known| !is(known.as_ref(), address))
            .await;
    }

    pub(crate) fn register(&self, link: Weak<Shared>) {
        let mut links = locked(&self.links);
        links.retain(|link| link.strong_count() > 0);
        links.push(link);
    }

    /// Starts to listen to what the sentinels tell, until [`stop`](Self::stop) or the last link is
    /// gone.
    pub(crate) fn start(self: &Arc<Self>, tasks: &Tasks) {
        let this = Arc::downgrade(self);
        let stop = self.stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(this) => {}
            }
        });
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// The master after a round, if any sentinel named one in it.
    fn consider(&self, round: &Survey) -> Option<Arc<Address>> {
        let changed = self
            .master
            .send_if_modified(|known| KnownMaster::consider(known, round));
        let master = self
            .master
            .borrow()
            .as_ref()
            .map(|known| Arc::clone(&known.master))?;
        if changed {
            tracing::debug!(service = self.service, %master, "the sentinels name another master");
            let links: Vec<_> = locked(&self.links)
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            links.iter().for_each(|link| link.moved_on());
        }
        (!round.reports.is_empty()).then_some(master)
    }

    async fn ask_all(&self) -> Vec<Result<SentinelReport, Failure>> {
        let mut asked = JoinSet::new();
        for sentinel in &self.sentinels {
            asked.spawn(ask(sentinel.clone(), self.service.clone(), self.limit));
        }
        let mut reports = Vec::new();
        let mut enough = Instant::now() + self.limit * 2;
        loop {
            tokio::select! {
                report = asked.join_next() => match report {
                    Some(Ok(report)) => reports.push(report),
                    Some(Err(_)) => {}
                    None => return reports,
                },
                () = sleep_until(enough) => return reports,
            }
            let answered = reports.iter().filter(|report| report.is_ok()).count();
            if answered * 2 > self.sentinels.len() {
                enough = enough.min(Instant::now() + GRACE);
            }
        }
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentinels: Vec<_> = self.sentinels.iter().map(shown).collect();
        write!(
            f,
            "the master of `{}` by the sentinels {}",
            self.service,
            sentinels.join(", ")
        )
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let master = self
            .master
            .borrow()
            .as_ref()
            .map(|known| known.master.to_string());
        f.debug_struct("Sentinels")
            .field("service", &self.service)
            .field("master", &master)
            .finish_non_exhaustive()
    }
}

fn is(known: Option<&KnownMaster>, address: &Address) -> bool {
    known.is_some_and(|known| *known.master == *address)
}

async fn ask(
    sentinel: ConnectionInfo,
    service: String,
    limit: Duration,
) -> Result<SentinelReport, Failure> {
    let asking = async {
        let client = Client::open(sentinel).map_err(Failure::bad_setting)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(limit));
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(Failure::unsent)?;
        let answer = redis::cmd("SENTINEL")
            .arg("MASTER")
            .arg(&service)
            .query_async(&mut connection)
            .await;
        parse(answer.map_err(Failure::unsent)?)
    };
    let timed_out = |_| Failure::timed_out().without_effect();
    timeout(limit, asking).await.map_err(timed_out)?
}

fn parse(answer: HashMap<String, String>) -> Result<SentinelReport, Failure> {
    let report = || {
        let port = answer.get("port")?.parse().ok()?;
        let epoch: u64 = answer.get("config-epoch")?.parse().ok()?;
        // The sentinel that directs a failover counts it while still naming the old master.
        let is_between = answer
            .get("flags")
            .is_some_and(|flags| flags.split(',').any(|flag| flag == "failover_in_progress"));
        Some(SentinelReport {
            epoch: epoch.saturating_sub(u64::from(is_between)),
            master: Address::new(answer.get("ip")?, port),
        })
    };
    report().ok_or_else(|| {
        Failure::unexpected("no address in answer to SENTINEL MASTER").without_effect()
    })
}

/// Subscribes to one sentinel after the other, and looks for the master whenever there may be
/// another one; from time to time also while none lets it subscribe.
async fn follow(sentinels: Weak<Sentinels>) {
    let mut at = 0;
    let mut looked = Instant::now();
    loop {
        let Some((subscribing, service)) = sentinels.upgrade().map(|sentinels| {
            let sentinel = sentinels.sentinels[at % sentinels.sentinels.len()].clone();
            (
                timeout(sentinels.limit, subscribe(sentinel)),
                sentinels.service.clone(),
            )
        }) else {
            return;
        };
        if let Ok(Ok(subscription)) = subscribing.await {
            let mut messages = subscription.into_on_message();
            // Messages that were published before are not repeated.
            let mut is_due = true;
            loop {
                if is_due {
                    look(&sentinels).await;
                    looked = Instant::now();
                }
                is_due = tokio::select! {
                    message = messages.next() => match message {
                        Some(message) => names(&message.get_payload::<String>().unwrap_or_default(), &service),
                        None => break,
                    },
                    () = sleep_until(looked + RECHECK) => true,
                };
            }
        } else if looked.elapsed() >= RECHECK {
            look(&sentinels).await;
            looked = Instant::now();
        }
        at += 1;
        sleep(PAUSE).await;
    }
}

async fn look(sentinels: &Weak<Sentinels>) {
    let Some(sentinels) = sentinels.upgrade() else {
        return;
    };
    if let Err(failure) = sentinels.find_master().await {
        tracing::debug!(?failure, "the sentinels cannot be asked at the moment");
    }
}

async fn subscribe(sentinel: ConnectionInfo) -> redis::RedisResult<redis::aio::PubSub> {
    let mut subscription = Client::open(sentinel)?.get_async_pubsub().await?;
    subscription.subscribe(SWITCHED).await?;
    Ok(subscription)
}

/// `service old-host old-port new-host new-port`
fn names(message: &str, service: &str) -> bool {
    message.split(' ').next() == Some(service)
}

#[cfg(test)]
mod tests;
