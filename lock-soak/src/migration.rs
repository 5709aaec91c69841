//! The operators of a migration.

use std::time::Duration;

use polylock::{
    ErrorKind, LockError, Registry,
    migrate::{MigrateConnector, Operator, Order, Phase, Plan},
    redis::RedisConnector,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{BoxError, client::lock_of, event::Kind, home::Home, rng::Rng};

/// A migration under soak: one plan for each lock, which are at different phases at any time.
#[derive(Clone, Debug)]
pub(crate) struct Migration {
    pub(crate) seed: u64,
    pub(crate) registers: u32,
    /// Of memberships.
    pub(crate) ttl: Duration,
    /// Operators die half-way, compete with others, and turn back.
    pub(crate) disturbed: bool,
    /// Time between two orders of one plan.
    pub(crate) rests: Duration,
    pub(crate) home: Home,
}

const MILLI: Duration = Duration::from_millis(1);
/// Time that an order may take: guards drain, and tokens pass, meanwhile.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause after an order that a store did not answer.
const PAUSE: Duration = Duration::from_millis(200);
/// First of the streams of random numbers of the operators, one for each plan.
const STREAM: u64 = 8;

/// Takes each plan forward and back until it is dropped.
pub(crate) async fn drive(url: &str, terms: &Migration) -> Result<(), BoxError> {
    let mut drivers = JoinSet::new();
    for register in 0..terms.registers {
        let driver = Driver {
            url: url.to_owned(),
            prefix: lock_of(register),
            terms: terms.clone(),
            rng: Rng::new(terms.seed, STREAM + u64::from(register)),
            is_forward: true,
        };
        drivers.spawn(driver.run());
    }
    while let Some(outcome) = drivers.join_next().await {
        outcome??;
    }
    Ok(())
}

/// Takes each plan back and removes it, when no faults are left.
pub(crate) async fn take_back(url: &str, terms: &Migration) -> Result<(), BoxError> {
    let operator = operator(url).await?;
    for status in operator.status().await?.plans {
        let prefix = &status.plan.prefix;
        let mut phase = status.plan.phase;
        loop {
            if !operator.settle(prefix, LIMIT, |_| {}).await?.settled {
                return Err(format!("{prefix} does not settle though no worker is left").into());
            }
            let order = match phase {
                Phase::SourceOnly => Order::Remove,
                _ => Order::RollBack,
            };
            match operator.order(prefix, order, LIMIT, false).await? {
                Some(plan) => phase = plan.phase,
                None => break,
            }
            terms.moved(prefix, phase);
        }
    }
    Ok(operator.shutdown().await?)
}

pub(crate) async fn operator(url: &str) -> Result<Operator, LockError> {
    let sources = Registry::new().with(RedisConnector);
    MigrateConnector::new(sources)
        .operator(&url.parse()?, "soak")
        .await
}

impl Migration {
    fn moved(&self, prefix: &str, phase: Phase) {
        let prefix = prefix.to_owned();
        self.home.record(Kind::Moved { prefix, phase });
    }
}

/// Those who operate one plan.
struct Driver {
    url: String,
    prefix: String,
    terms: Migration,
    rng: Rng,
    is_forward: bool,
}

impl Driver {
    async fn run(mut self) -> Result<(), BoxError> {
        loop {
            let dies_after = self.rng.duration(Duration::ZERO..300 * MILLI);
            let dies = self.terms.disturbed && self.rng.one_in(6);
            let limit = if dies { dies_after } else { LIMIT };
            match timeout(limit, self.step()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if is_fault(&error) || error.kind() == ErrorKind::TimedOut => {
                    if !self.terms.disturbed {
                        return Err(error.into());
                    }
                    sleep(PAUSE).await;
                }
                // Refused: members drain, or another operator was first.
                Ok(Err(_)) => sleep(PAUSE).await,
                Err(_) if dies => {}
                Err(_) if self.terms.disturbed => {}
                Err(_) => return Err(format!("{}: no step within {LIMIT:?}", self.prefix).into()),
            }
        }
    }

    /// One order, of one operator or of two at once, and the wait for the members.
    async fn step(&mut self) -> Result<(), LockError> {
        let operator = operator(&self.url).await?;
        let stepped = self.step_with(&operator).await;
        let _ = operator.shutdown().await;
        sleep(self.terms.rests).await;
        stepped
    }

    async fn step_with(&mut self, operator: &Operator) -> Result<(), LockError> {
        let status = operator.status().await?;
        let plan = status
            .plans
            .into_iter()
            .find(|it| it.plan.prefix == self.prefix);
        let Some(plan) = plan else {
            return operator.plan(&self.prefix, false).await.map(drop);
        };
        let order = self.pick(plan.plan.phase);
        let written = if self.terms.disturbed && self.rng.one_in(4) {
            let rival = self::operator(&self.url).await?;
            let (one, other) = tokio::join!(self.order(operator, order), self.order(&rival, order));
            let _ = rival.shutdown().await;
            one.or(other)?
        } else {
            self.order(operator, order).await?
        };
        let Some(Plan { phase, .. }) = written else {
            return Ok(());
        };
        let settled = operator.settle(&self.prefix, LIMIT, |_| {}).await?;
        if settled.settled && settled.plan.phase == phase {
            let prefix = self.prefix.clone();
            self.terms.home.record(Kind::Settled { prefix, phase });
        }
        Ok(())
    }

    async fn order(&self, operator: &Operator, order: Order) -> Result<Option<Plan>, LockError> {
        let plan = operator.order(&self.prefix, order, LIMIT, false).await?;
        if let Some(plan) = &plan {
            self.terms.moved(&self.prefix, plan.phase);
        }
        Ok(plan)
    }

    /// Goes on to the end, and back to the start, with some turns half-way.
    fn pick(&mut self, phase: Phase) -> Order {
        let turns = self.terms.disturbed && self.rng.one_in(6);
        self.is_forward = match phase {
            Phase::SourceOnly => true,
            Phase::Final => false,
            _ => self.is_forward != turns,
        };
        match self.is_forward {
            true => Order::Advance,
            false => Order::RollBack,
        }
    }
}

fn is_fault(error: &LockError) -> bool {
    error.kind() != ErrorKind::InvalidConfig
}
