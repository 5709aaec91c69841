//! One acquisition against real stores: runs the steps of [`Attempt`].

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::{join, select_all};
use lock_core::{
    AcquireOptions, DistributedLock, ErrorKind, FencingToken, GuardState, LockError, LockGuard,
    LockName, LossReason,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    Phase,
    guard::joined,
    link,
    protocol::{Attempt, Step},
    stores::Stores,
};

/// What a caller wants.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) name: LockName,
    pub(crate) options: AcquireOptions,
    /// As the stores will round it.
    pub(crate) ttl: Duration,
    /// When the caller's time is up.
    pub(crate) until: Option<Instant>,
    /// Not for a try.
    pub(crate) waits: bool,
}

/// How an attempt ends that did not fail.
pub(crate) enum Outcome {
    Granted(LockGuard),
    /// Somebody else has it, and the caller does not wait.
    NotFree,
    /// What had been taken was lost on the way: to be begun again.
    Lost,
}

/// What has been taken so far. Dropped, it is released in the background.
#[derive(Debug, Default)]
struct Taken {
    source: Option<LockGuard>,
    target: Option<LockGuard>,
}

/// Between two attempts to reach a store that does not answer.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// One attempt in this phase.
pub(crate) async fn attempt(
    stores: &Stores,
    phase: Phase,
    asked: &Asked,
) -> Result<Outcome, LockError> {
    let mut machine = Attempt::new(phase, stores.head_room);
    let mut taken = Taken::default();
    loop {
        let begin = Instant::now();
        let outcome = match machine.step() {
            Step::HandOut { token } => return Ok(taken.hand_out(token)),
            Step::TakeSource => take_source(stores, asked, &mut machine, &mut taken).await,
            Step::TakeTarget => take_target(stores, asked, &mut machine, &mut taken).await,
            step => agree(stores, asked, step, phase, &mut machine, &taken).await,
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(Outcome::Lost)) => return Ok(taken.lost().await),
            Ok(Some(outcome)) => {
                // At once, so that the next attempt does not meet what this one had.
                taken.undo().await;
                return Ok(outcome);
            }
            Err(error) => return Err(asked.in_time(error, begin)),
        }
    }
}

type Progress = Result<Option<Outcome>, LockError>;

async fn take_source(
    stores: &Stores,
    asked: &Asked,
    machine: &mut Attempt,
    taken: &mut Taken,
) -> Progress {
    let mut options = asked.options.clone();
    let marked = (stores.member.as_ref())
        .and_then(|member| link::encode_member(member, asked.options.metadata()));
    if let Some(marked) = marked {
        options = options.with_metadata(marked);
    }
    let took = take(stores.source()?, asked, options).await;
    let Some(guard) = took? else {
        return Ok(Some(Outcome::NotFree));
    };
    machine.source_taken(token(&guard)?);
    taken.source = Some(guard);
    Ok(None)
}

async fn take_target(
    stores: &Stores,
    asked: &Asked,
    machine: &mut Attempt,
    taken: &mut Taken,
) -> Progress {
    let target = stores.target()?;
    let mut options = asked.options.clone();
    if let Some(source) = &taken.source
        && stores.links
    {
        options = options.with_metadata(link::encode(source.owner(), asked.options.metadata()));
    }
    let Some(took) = taken.unless_lost(take(target, asked, options)).await else {
        return Ok(Some(Outcome::Lost));
    };
    let Some(guard) = took? else {
        return Ok(Some(Outcome::NotFree));
    };
    machine.target_taken(token(&guard)?);
    taken.target = Some(guard);
    Ok(None)
}

/// The steps that make both stores remember the token.
async fn agree(
    stores: &Stores,
    asked: &Asked,
    step: Step,
    phase: Phase,
    machine: &mut Attempt,
    taken: &Taken,
) -> Progress {
    let done = async {
        match step {
            Step::ReadFloor { .. } if phase == Phase::Final => {
                machine.floor_read(asked.persist(|| stores.final_floor()).await?);
            }
            Step::ReadFloor { owned_at } => {
                let expected = stores.last_floor.load(Ordering::Relaxed);
                let owned_at = FencingToken::new(owned_at);
                let (floor, raised) = join(
                    asked.persist(|| stores.floor.read_at(owned_at)),
                    taken.raise_source(asked, machine.likely_raise(expected)),
                )
                .await;
                // A raise that failed is a step of its own, if it is needed.
                if let Ok(Some(raised)) = raised {
                    machine.source_raised(raised);
                }
                let floor = floor?;
                stores.last_floor.fetch_max(floor, Ordering::Relaxed);
                machine.floor_read(floor);
            }
            Step::RaiseFloor { to } => {
                machine.floor_raised(asked.persist(|| stores.floor.raise(to)).await?);
            }
            Step::RaiseSource { to } => {
                let Some(raised) = taken.raise_source(asked, Some(to)).await? else {
                    return Ok(false);
                };
                machine.source_raised(raised);
            }
            Step::ConfirmTarget => {
                if !asked.persist(|| taken.owns_target(stores, asked)).await? {
                    return Ok(false);
                }
                machine.target_confirmed();
            }
            Step::TakeSource | Step::TakeTarget | Step::HandOut { .. } => {}
        }
        Ok(true)
    };
    match taken.unless_lost(done).await {
        None | Some(Ok(false)) => Ok(Some(Outcome::Lost)),
        Some(Err(error)) if error_is_loss(&error) => Ok(Some(Outcome::Lost)),
        Some(Err(error)) => Err(error),
        Some(Ok(true)) => Ok(None),
    }
}

fn error_is_loss(error: &LockError) -> bool {
    error.kind() == ErrorKind::Lost
}

async fn take(
    store: &Arc<dyn DistributedLock>,
    asked: &Asked,
    options: AcquireOptions,
) -> Result<Option<LockGuard>, LockError> {
    if !asked.waits {
        return store.try_acquire_named(&asked.name, options).await;
    }
    let Some(until) = asked.until else {
        return store.acquire_named(&asked.name, options).await.map(Some);
    };
    let left = until.saturating_duration_since(Instant::now());
    let options = options.with_timeout(left.max(LEAST));
    store.acquire_named(&asked.name, options).await.map(Some)
}

/// Zero would be refused.
const LEAST: Duration = Duration::from_millis(1);

fn token(guard: &LockGuard) -> Result<u64, LockError> {
    let none = || {
        LockError::new(
            ErrorKind::Protocol,
            "a guard came without its fencing token",
        )
    };
    guard.token().map(FencingToken::as_u64).ok_or_else(none)
}

/// A store that is well answers within this time, on a loaded machine as well.
const ANSWERED: Duration = Duration::from_millis(250);

impl Asked {
    /// The error of a step that began at `begin`. If waiting for the steps before has used up the
    /// caller's time, so that none was left for the answer, that is the caller's timeout and says
    /// nothing of the store.
    fn in_time(&self, error: LockError, begin: Instant) -> LockError {
        let had_time = self
            .options
            .timeout()
            .is_some_and(|limit| limit >= ANSWERED);
        let is_late = self.until.is_some_and(|until| until < begin + ANSWERED);
        if self.waits && error.kind() == ErrorKind::Unavailable && had_time && is_late {
            let message = "the time was up before both stores had answered";
            return LockError::new(ErrorKind::TimedOut, message).caused_by(error);
        }
        error
    }

    /// Repeats a request while the store does not answer, as long as the caller waits, and for a
    /// TTL at most.
    pub(crate) async fn persist<T, F>(&self, request: impl Fn() -> F) -> Result<T, LockError>
    where
        F: Future<Output = Result<T, LockError>>,
    {
        let outage = Instant::now() + self.ttl;
        let give_up = self.until.map_or(outage, |until| until.min(outage));
        loop {
            match timeout_at(give_up, request()).await {
                Ok(Err(error)) if self.waits && error.kind() == ErrorKind::Unavailable => {
                    if Instant::now() + PAUSE >= give_up {
                        return Err(error);
                    }
                    sleep(PAUSE).await;
                }
                Ok(answer) => return answer,
                Err(_) => {
                    return Err(LockError::new(
                        ErrorKind::Unavailable,
                        "the store did not answer in time",
                    ));
                }
            }
        }
    }
}

impl Taken {
    fn guards(&self) -> impl Iterator<Item = &LockGuard> {
        self.source.iter().chain(&self.target)
    }

    /// The future's output, unless what was taken ends before.
    async fn unless_lost<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let ends: Vec<_> = self.guards().map(|guard| Box::pin(guard.ended())).collect();
        if ends.is_empty() {
            return Some(future.await);
        }
        tokio::select! {
            biased;
            output = future => Some(output),
            _ = select_all(ends) => None,
        }
    }

    /// Raises the source's token, if there is something to raise; returns what it is then.
    async fn raise_source(&self, asked: &Asked, to: Option<u64>) -> Result<Option<u64>, LockError> {
        let Some((source, to)) = self.source.as_ref().zip(to) else {
            return Ok(None);
        };
        let to = FencingToken::new(to);
        let raised = asked.persist(|| source.raise_token(to)).await?;
        Ok(Some(raised.as_u64()))
    }

    async fn owns_target(&self, stores: &Stores, asked: &Asked) -> Result<bool, LockError> {
        let target = stores.target()?;
        let Some(guard) = &self.target else {
            return Ok(false);
        };
        if !target.capabilities().inspect {
            return Ok(guard.is_held());
        }
        let info = target.inspect_named(&asked.name).await?;
        Ok(info.is_some_and(|info| info.holder().owner == *guard.owner()))
    }

    /// One guard of all that was taken, which the source's has raised its token for.
    fn hand_out(self, token: u64) -> Outcome {
        // A token that was made while a lock was not ours any more may be one of others.
        if self.guards().any(|guard| guard.state() != GuardState::Held) && !self.reached_max_hold()
        {
            return Outcome::Lost;
        }
        match (self.source, self.target) {
            (Some(source), Some(target)) => Outcome::Granted(joined(source, target)),
            (Some(source), None) => Outcome::Granted(source),
            (None, Some(target)) => {
                Outcome::Granted(target.with_token(Some(FencingToken::new(token))))
            }
            (None, None) => Outcome::Lost,
        }
    }

    /// A hold that has reached its maximum already is the caller's: another attempt would end in
    /// the same way.
    fn reached_max_hold(&self) -> bool {
        self.guards()
            .any(|guard| guard.state() == GuardState::Lost(LossReason::MaxHold))
    }

    async fn lost(self) -> Outcome {
        if !self.reached_max_hold() {
            self.undo().await;
            return Outcome::Lost;
        }
        match (self.source, self.target) {
            (Some(source), Some(target)) => Outcome::Granted(joined(source, target)),
            (Some(one), None) | (None, Some(one)) => Outcome::Granted(one),
            (None, None) => Outcome::Lost,
        }
    }

    /// Releases in reverse. What cannot be released now is tried again in the background.
    async fn undo(self) {
        for guard in [self.target, self.source].into_iter().flatten() {
            if let Err(error) = guard.release().await {
                tracing::debug!(%error, "a lock that was taken in vain is released later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_for_which_no_time_was_left_is_the_callers_timeout() {
        let begin = Instant::now();
        let kind = |limit: Duration, left| {
            let asked = Asked {
                name: LockName::new("orders/1").unwrap(),
                options: AcquireOptions::new().with_timeout(limit),
                ttl: limit,
                until: Some(begin + left),
                waits: true,
            };
            let silent = LockError::new(ErrorKind::Unavailable, "the store did not answer");
            asked.in_time(silent, begin).kind()
        };
        let brief = ANSWERED / 2;
        let long = ANSWERED * 4;
        assert_eq!(kind(long, brief), ErrorKind::TimedOut);
        assert_eq!(kind(long, long), ErrorKind::Unavailable);
        // Who has no time from the start is told of the store.
        assert_eq!(kind(brief, brief), ErrorKind::Unavailable);
    }
}
