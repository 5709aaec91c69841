use std::{sync::Arc, time::Duration};

use lock_core::{
    LockError, LockGuard, LockName, Terms,
    backend::{Clock, WaitLimit},
};

use crate::{
    backoff::{Backoff, poll},
    keys::Keys,
    queue_entry::RENEW_INTERVAL,
    quorum::{
        acquire::{AttemptOutcome, Core},
        queue_entry::{Position, QuorumQueueEntry},
        waiter::QuorumWaiter,
    },
    scripts::{self, Holder},
    waiters::local::{Limits, Turn},
};

const CLOCK: Clock = Clock::Suspend;

/// One waiter: the first of its client asks for the place that the client has in the queue, and
/// sleeps on the entry before its own; the first in the queue looks at all servers, and competes
/// when a majority may be free.
pub(super) struct Wait<'a> {
    core: &'a Arc<Core>,
    name: &'a LockName,
    keys: &'a Keys,
    terms: &'a Terms,
    wait_limit: &'a WaitLimit,
    waiter: QuorumWaiter<'a>,
    /// After the waiter, whose end it looks at.
    queued: QuorumQueueEntry,
    splits: Backoff,
    failures: Backoff,
    /// The last thing asked of a majority was not answered.
    failed: bool,
    /// The last attempt was refused, and nobody has looked since.
    in_vain: bool,
    /// Somebody else had the lock, or came before.
    refused: bool,
}

impl<'a> Wait<'a> {
    pub(super) fn begin(
        core: &'a Arc<Core>,
        name: &'a LockName,
        keys: &'a Keys,
        terms: &'a Terms,
        wait_limit: &'a WaitLimit,
    ) -> Self {
        let limits = Limits::new(terms.ttl, core.attempt);
        let waiter = QuorumWaiter::join(&core.watcher, &core.tracked_locks, &keys.lock, limits);
        wait_limit.follow(waiter.place().health());
        Self {
            core,
            name,
            keys,
            terms,
            wait_limit,
            waiter,
            queued: QuorumQueueEntry::new(core, keys),
            splits: Backoff::after_splits(),
            failures: Backoff::after_failures(),
            failed: false,
            in_vain: false,
            refused: false,
        }
    }

    pub(super) async fn granted(mut self) -> Result<LockGuard, LockError> {
        loop {
            let turn = self.waiter.place().turn().await;
            if let Some(guard) = self.step(turn).await? {
                return Ok(guard);
            }
        }
    }

    async fn step(&mut self, turn: Turn) -> Result<Option<LockGuard>, LockError> {
        if self.waiter.may_be_free() {
            return self.compete().await;
        }
        if self.queued.is_due() {
            let renewal = self.queued.has_entered();
            let Some(mut position) = self.queued.enter().await else {
                return self.look(turn).await;
            };
            if let Some(before) = position.before.take() {
                self.refused = true;
                self.note_holder(position.holder.as_ref());
                if renewal || self.failed {
                    self.reach_majority().await?;
                }
                self.sleep_behind(turn, before, &position).await;
                return Ok(None);
            }
            if position.holder.is_none() && !self.in_vain {
                return self.compete().await;
            }
        } else if self.queued.moved_up() {
            self.waiter.place().progressed();
        }
        self.look(turn).await
    }

    /// Tries to take the lock.
    async fn compete(&mut self) -> Result<Option<LockGuard>, LockError> {
        let queued = self.queued.part();
        let attempt = self
            .core
            .attempt(self.name, self.keys, self.terms, queued.as_ref());
        let attempt = self.wait_limit.ask(attempt).await;
        self.queued.competed();
        let split = match attempt {
            AttemptOutcome::OutOfReach(error) => return self.failed(error).map(|()| None),
            AttemptOutcome::Busy { split } => split,
            AttemptOutcome::Won(guard) => {
                self.queued.granted().await;
                self.answered();
                self.waiter.place().answered();
                self.core.contended.note(&self.keys.lock, self.refused);
                return Ok(Some(guard));
            }
        };
        self.answered();
        // Whoever is the head of the client's waiters goes on at once.
        self.waiter.place().answered();
        self.refused = true;
        self.in_vain = true;
        if split {
            self.waiter.place().pause(self.splits.pause());
        }
        Ok(None)
    }

    /// Looks at all servers, which report the next change, and sleeps if no majority may be free.
    async fn look(&mut self, turn: Turn) -> Result<Option<LockGuard>, LockError> {
        self.in_vain = false;
        let survey = self
            .wait_limit
            .ask(self.waiter.look(&self.core.quorum))
            .await;
        if survey.holder.is_some() {
            self.splits = Backoff::after_splits();
        }
        self.note_holder(survey.holder.as_ref());
        if survey.answered < self.core.quorum.majority().needed() {
            self.failed(self.core.out_of_reach(&survey.failures))?;
        } else if !self.waiter.is_worth_a_try() {
            // Failures are not over before it is tried: servers that can be read may grant nothing.
            self.refused = true;
            let most = self.poll(survey.blind);
            self.waiter.place().taken(turn, survey.ends_in, most);
            self.answered();
        }
        Ok(None)
    }

    /// Sleeps until the entry `before` its own ends.
    async fn sleep_behind(&mut self, turn: Turn, before: scripts::Entry, position: &Position) {
        self.waiter.forget();
        let place = self.waiter.place();
        place.listen(Some(&before.key));
        let is_blind = match self.queued.look_at(&before).await {
            Ok((true, tracked)) => !tracked,
            Ok((false, _)) => {
                place.progressed();
                place.answered();
                return;
            }
            // That server alone may have failed: the next one is asked soon.
            Err(_) => true,
        };
        let most = self.poll(is_blind);
        let again = position.again_in.map_or(most, |left| most.min(left));
        self.queued.follow(before, CLOCK.now() + again);
        self.waiter.place().taken(turn, position.again_in, most);
    }

    /// Finds out whether a majority answers: whoever sleeps on one server alone would take an
    /// outage for contention.
    async fn reach_majority(&mut self) -> Result<(), LockError> {
        let key = &self.keys.lock;
        let asked = async {
            let mut answers = self.core.quorum.ask(|member| {
                let key = Arc::clone(key);
                async move {
                    let connection = member.connection(&key).await?;
                    member.heard(connection.run(&redis::cmd("PING")).await)
                }
            });
            let mut answered = 0;
            while answered < self.core.quorum.majority().needed()
                && let Some((_, answer)) = answers.next().await
            {
                answered += usize::from(answer.is_some());
            }
            (answered, answers.failures)
        };
        let (answered, failures) = self.wait_limit.ask(asked).await;
        if answered < self.core.quorum.majority().needed() {
            return self.failed(self.core.out_of_reach(&failures));
        }
        self.answered();
        Ok(())
    }

    fn answered(&mut self) {
        self.wait_limit.answered();
        self.failures = Backoff::after_failures();
        self.failed = false;
    }

    fn failed(&mut self, error: LockError) -> Result<(), LockError> {
        self.failed = true;
        self.wait_limit.failed(error)?;
        self.waiter.place().pause(self.failures.pause());
        Ok(())
    }

    fn note_holder(&self, holder: Option<&Holder>) {
        if let Some(holder) = holder {
            let health = self.waiter.place().health();
            health.held_by(&holder.owner, holder.value.as_deref());
        }
    }

    /// Returns for how long to rely on reports: less than the entry lasts without a renewal.
    fn poll(&self, is_blind: bool) -> Duration {
        poll(self.core.poll.min(RENEW_INTERVAL), is_blind)
    }
}
