//! The plans of a migration, as an operator changes them.

use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use polylock::{
    ErrorKind, LockError, LockUrl, Registry,
    etcd::EtcdConnector,
    migrate::{MigrateConnector, Operator, Order, Plan, PlanStatus},
    redis::{RedisConnector, RedisQuorumConnector},
};

use crate::{
    Done,
    output::{self, Behind, Outcome},
    verify::Verify,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// Make a plan for the names that begin with a prefix; changes nothing for them yet
    Plan(Change),
    /// Show the plans, the members, and what drains slowly
    Status(Look),
    /// Show what operators have done
    History(Look),
    /// Go to the next phase, and wait until all members have followed
    Advance(Advance),
    /// Compare what both stores hold, and look for those who lock in the source alone
    Verify(Verify),
    /// Go back to the phase before, and wait until all members have followed
    Rollback(Move),
    /// Refuse to advance until resumed
    Pause(Change),
    /// Allow to advance again
    Resume(Change),
    /// Go back to the source phase by phase, and remove the plan
    Abort(Move),
    /// End the migration for good: the names stay in the target, and there is no way back
    Complete(Change),
}

/// Where to look.
#[derive(Debug, Args)]
pub(crate) struct Look {
    /// URL of the migration, as the members have it:
    /// migrate+redis://host:6379/0?phase=coordinated&target=etcd://host:2379/namespace
    #[arg(long, env = "LOCK_URL", hide_env_values = true)]
    url: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Start of the names; '' for all
    prefix: String,
    #[command(flatten)]
    look: Look,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Operator, for the history
    #[arg(long, value_name = "NAME", env = "USER", default_value = "operator")]
    by: String,
}

/// A change of phase.
#[derive(Debug, Args)]
pub(crate) struct Move {
    #[command(flatten)]
    change: Change,
    /// Longest wait for the members, and on the way back for the source's tokens; at most 1day
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    drain_limit: Duration,
}

/// A step forward.
#[derive(Debug, Args)]
pub(crate) struct Advance {
    #[command(flatten)]
    step: Move,
    /// Before target-only: how long nobody may have been seen to lock in the source without being
    /// a member; 0s looks for nobody
    #[arg(long, value_name = "DURATION", default_value = "10min", value_parser = limit)]
    foreign_window: Duration,
    /// Go on without any live member
    #[arg(long)]
    no_members: bool,
}

pub(crate) fn limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match limit <= Duration::from_secs(86_400) {
        true => Ok(limit),
        false => Err("at most 1day".to_owned()),
    }
}

impl Migrate {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let operator = self.operator().await?;
        let done = self.act(&operator).await;
        // The leases are given back; if that fails, they end by themselves.
        let _ = operator.shutdown().await;
        done
    }

    async fn operator(&self) -> Result<Operator, LockError> {
        let (look, by) = match self {
            Self::Status(look) | Self::History(look) => (look, "lockctl"),
            Self::Verify(it) => (&it.look, "lockctl"),
            Self::Plan(it) | Self::Pause(it) | Self::Resume(it) | Self::Complete(it) => {
                (&it.look, &*it.by)
            }
            Self::Advance(Advance { step: it, .. }) | Self::Rollback(it) | Self::Abort(it) => {
                (&it.change.look, &*it.change.by)
            }
        };
        look.operator(by).await
    }

    async fn act(self, operator: &Operator) -> Result<Done, LockError> {
        match self {
            Self::Status(look) => output::status(&operator.status().await?, look.json),
            Self::History(look) => output::history(&operator.history().await?, look.json),
            Self::Plan(it) => it.report(Some(operator.plan(&it.prefix, it.dry_run).await?)),
            Self::Pause(it) => it.order(operator, Order::Pause).await?,
            Self::Resume(it) => it.order(operator, Order::Resume).await?,
            Self::Complete(it) => it.order(operator, Order::Complete).await?,
            Self::Verify(it) => return it.run(operator).await,
            Self::Advance(it) => {
                let operator = (operator.clone())
                    .with_foreign_window(it.foreign_window)
                    .without_members(it.no_members);
                return it.step.step(&operator, Order::Advance).await;
            }
            Self::Rollback(it) => return it.step(operator, Order::RollBack).await,
            Self::Abort(it) => return it.abort(operator).await,
        }
        Ok(Done::Settled)
    }
}

impl Look {
    async fn operator(&self, by: &str) -> Result<Operator, LockError> {
        let url: LockUrl = self.url()?.parse()?;
        let sources = Registry::new()
            .with(RedisConnector)
            .with(RedisQuorumConnector)
            .with(EtcdConnector);
        MigrateConnector::new(sources).operator(&url, by).await
    }

    fn url(&self) -> Result<&str, LockError> {
        let url = self.url.as_deref().filter(|url| !url.is_empty());
        url.ok_or_else(|| {
            let message = "there is no URL; set LOCK_URL or give --url, as in migrate+redis://host:6379/0?phase=coordinated&target=etcd://host:2379/namespace";
            LockError::new(ErrorKind::InvalidUrl, message)
        })
    }
}

impl Change {
    /// Carries out an order that members need not follow.
    async fn order(&self, operator: &Operator, order: Order) -> Result<(), LockError> {
        let plan = operator
            .order(&self.prefix, order, Duration::ZERO, self.dry_run)
            .await?;
        self.report(plan);
        Ok(())
    }

    fn report(&self, plan: Option<Plan>) {
        let outcome = self.outcome(plan);
        match self.look.json {
            true => output::json(&outcome),
            false => outcome.print(),
        }
    }

    fn outcome(&self, plan: Option<Plan>) -> Outcome {
        Outcome {
            prefix: self.prefix.clone(),
            dry_run: self.dry_run,
            plan,
            behind: None,
        }
    }
}

impl Move {
    async fn step(&self, operator: &Operator, order: Order) -> Result<Done, LockError> {
        let mut outcome = self.order(operator, order).await?;
        let done = match self.change.dry_run {
            true => Done::Settled,
            false => self.settle(operator, &mut outcome).await,
        };
        self.finish(&outcome);
        Ok(done)
    }

    /// Goes one phase after the other. If the operator dies on the way, the plan can be aborted
    /// again, or advanced.
    async fn abort(&self, operator: &Operator) -> Result<Done, LockError> {
        loop {
            let plan = self.plan(operator).await?;
            let previous = plan.as_ref().and_then(|plan| plan.phase.previous());
            // Members need not have followed a step that is only taken back.
            let is_reversal = previous.is_some() && previous == plan.as_ref().map(|it| it.from);
            let mut outcome = self.change.outcome(plan);
            if !self.change.dry_run && outcome.plan.is_some() && !is_reversal {
                let done = self.settle(operator, &mut outcome).await;
                if done != Done::Settled {
                    self.finish(&outcome);
                    return Ok(done);
                }
            }
            let order = match (&outcome.plan, previous) {
                (Some(_), None) => Order::Remove,
                _ => Order::RollBack,
            };
            let mut outcome = self.order(operator, order).await?;
            if self.change.dry_run || outcome.plan.is_none() {
                outcome.plan = None;
                self.finish(&outcome);
                return Ok(Done::Settled);
            }
        }
    }

    async fn plan(&self, operator: &Operator) -> Result<Option<Plan>, LockError> {
        let plans = operator.status().await?.plans;
        let plan = plans.into_iter().map(|status| status.plan);
        Ok(plan.into_iter().find(|it| it.prefix == self.change.prefix))
    }

    /// Carries out the order. People are told at once, because the wait may be interrupted.
    async fn order(&self, operator: &Operator, order: Order) -> Result<Outcome, LockError> {
        let Change {
            prefix, dry_run, ..
        } = &self.change;
        let plan = operator
            .order(prefix, order, self.drain_limit, *dry_run)
            .await?;
        let outcome = self.change.outcome(plan);
        if !self.change.look.json && !dry_run && outcome.plan.is_some() {
            outcome.print();
        }
        Ok(outcome)
    }

    /// Waits until all members have followed.
    async fn settle(&self, operator: &Operator, outcome: &mut Outcome) -> Done {
        let progress = ProgressBar::new_spinner();
        let show = |status: &PlanStatus| progress.set_message(output::behind(&status.behind));
        let settled = operator
            .settle(&self.change.prefix, self.drain_limit, show)
            .await;
        progress.finish_and_clear();
        match settled {
            Ok(status) => {
                let behind = output::behind(&status.behind);
                outcome.behind = Some(status.behind);
                if status.settled {
                    return Done::Settled;
                }
                eprintln!("lockctl: {behind}; wait for them, end them, or roll back");
            }
            Err(error) => eprintln!("lockctl: how far the members are is not known: {error}"),
        }
        Done::Behind
    }

    /// Prints what has not been printed yet.
    fn finish(&self, outcome: &Outcome) {
        if self.change.look.json {
            return output::json(outcome);
        }
        if self.change.dry_run || outcome.plan.is_none() {
            return outcome.print();
        }
        if outcome.behind.as_ref().is_some_and(Behind::is_empty) {
            println!("all members have followed");
        }
    }
}
