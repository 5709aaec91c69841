use std::{sync::Arc, time::Duration};

use polylock::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockError,
    LockGuard, LockName,
};
use tokio::{sync::watch, time::timeout};

use crate::{
    BoxError,
    event::{Ask, Event, How, Instant, Kind},
    rng::Rng,
    ttls::Ttls,
    wire::{Answer, Line, Request},
};

/// One client of the store, which acquires, increments and releases until it is told to stop.
pub(crate) struct Client {
    pub(crate) locks: Arc<dyn DistributedLock>,
    pub(crate) home: Line,
    pub(crate) process: u32,
    /// The number of its next attempt.
    pub(crate) next_ask: u64,
    pub(crate) registers: u32,
    pub(crate) ttls: Ttls,
    /// Holds no lock for long.
    pub(crate) brief: bool,
    pub(crate) rng: Rng,
    pub(crate) stop: watch::Receiver<bool>,
}

const MILLI: Duration = Duration::from_millis(1);
/// Interval at which a long hold is checked.
const LOOK: Duration = Duration::from_millis(50);

/// The lock that guards a register.
pub(crate) fn lock_of(register: u32) -> String {
    format!("soak/{register}")
}

/// Time by which the longest holds outlast their first lease, at most.
const OUTLAST: Duration = Duration::from_secs(8);

/// An acquire that is given up within this time often has a request on its way.
const ON_ITS_WAY: Duration = Duration::from_micros(1500);

/// Reason why a turn with the lock ended before its increments were done.
enum Cut {
    Lost,
    Home(BoxError),
}

impl From<std::io::Error> for Cut {
    fn from(error: std::io::Error) -> Self {
        Self::Home(error.into())
    }
}

impl Client {
    pub(crate) async fn live(mut self) -> Result<(), BoxError> {
        while !*self.stop.borrow() {
            self.turn().await?;
            tokio::time::sleep(self.rng.duration(Duration::ZERO..4 * MILLI)).await;
        }
        let error = self
            .locks
            .shutdown()
            .await
            .err()
            .map(|error| error.to_string());
        self.report(Kind::Closed { error }).await
    }

    async fn turn(&mut self) -> Result<(), BoxError> {
        let ask = Ask(self.next_ask);
        let register = self.pick_register();
        let how = self.pick_how();
        let ttl = self.ttls.pick(&mut self.rng);
        self.next_ask += 1;
        self.report(Kind::Asked {
            ask,
            register,
            how,
            ttl,
        })
        .await?;
        match self
            .acquire(&LockName::new(lock_of(register))?, how, ttl)
            .await
        {
            None => self.report(Kind::GaveUp { ask }).await,
            Some(Ok(Some(guard))) => self.hold(ask, register, ttl, guard).await,
            Some(Ok(None)) => self.report(Kind::NotFree { ask }).await,
            Some(Err(error)) if error.kind() == ErrorKind::TimedOut => {
                self.report(Kind::TimedOut { ask }).await
            }
            Some(Err(error)) => {
                self.report(Kind::Failed {
                    ask,
                    error: error.to_string(),
                })
                .await?;
                tokio::time::sleep(self.rng.duration(50 * MILLI..200 * MILLI)).await;
                Ok(())
            }
        }
    }

    /// Returns `None` if the acquire was given up.
    async fn acquire(
        &self,
        name: &LockName,
        how: How,
        ttl: Duration,
    ) -> Option<Result<Option<LockGuard>, LockError>> {
        let options = AcquireOptions::new().with_ttl(ttl);
        match how {
            How::Wait => Some(self.locks.acquire_with(name, options).await.map(Some)),
            How::Bounded(limit) => Some(
                self.locks
                    .acquire_with(name, options.with_timeout(limit))
                    .await
                    .map(Some),
            ),
            How::Try => Some(self.locks.try_acquire_with(name, options).await),
            How::GiveUpAfter(limit) if limit < ON_ITS_WAY => tokio::select! {
                outcome = self.locks.acquire_with(name, options) => Some(outcome.map(Some)),
                () = briefly(limit) => None,
            },
            How::GiveUpAfter(limit) => {
                let outcome = timeout(limit, self.locks.acquire_with(name, options)).await;
                outcome.ok().map(|outcome| outcome.map(Some))
            }
        }
    }

    /// Picks the first register most of the time, so that there is a queue; the others are free now
    /// and then.
    fn pick_register(&mut self) -> u32 {
        if self.rng.one_in(2) {
            self.rng.below(u64::from(self.registers)) as u32
        } else {
            0
        }
    }

    fn pick_how(&mut self) -> How {
        match self.rng.below(20) {
            0..=12 => How::Wait,
            13..=15 => How::Bounded(self.rng.duration(20 * MILLI..4000 * MILLI)),
            16..=17 => How::Try,
            18 => How::GiveUpAfter(self.rng.duration(Duration::ZERO..ON_ITS_WAY)),
            _ => How::GiveUpAfter(self.rng.duration(MILLI..300 * MILLI)),
        }
    }

    async fn hold(
        &mut self,
        ask: Ask,
        register: u32,
        ttl: Duration,
        guard: LockGuard,
    ) -> Result<(), BoxError> {
        let at = Instant::now();
        let token = guard.token().map_or(0, polylock::FencingToken::as_u64);
        let valid_until = at.plus(guard.remaining());
        self.send(
            at,
            Kind::Granted {
                ask,
                token,
                valid_until,
            },
        )
        .await?;
        for _ in 0..=self.rng.below(3) {
            match self.increment(ask, register, token, ttl, &guard).await {
                Ok(()) => {}
                Err(Cut::Lost) => break,
                Err(Cut::Home(error)) => return Err(error),
            }
        }
        self.report(Kind::Ending { ask }).await?;
        let error = if self.rng.one_in(6) {
            drop(guard);
            None
        } else {
            guard.release().await.err()
        };
        match error {
            // Known before, or news; whether it may be lost is checked separately from what may
            // fail.
            Some(error) if error.kind() == ErrorKind::Lost => {
                self.report(Kind::Lost {
                    ask,
                    why: error.to_string(),
                })
                .await?;
                self.report(Kind::Ended { ask, error: None }).await
            }
            error => {
                self.report(Kind::Ended {
                    ask,
                    error: error.map(|error| error.to_string()),
                })
                .await
            }
        }
    }

    async fn increment(
        &mut self,
        ask: Ask,
        register: u32,
        token: u64,
        ttl: Duration,
        guard: &LockGuard,
    ) -> Result<(), Cut> {
        self.ensure_held(ask, guard).await?;
        let value = self
            .ask_register(
                ask,
                guard,
                &Request::Read {
                    ask,
                    register,
                    token,
                },
            )
            .await?;
        self.think(ask, ttl, guard).await?;
        self.ensure_held(ask, guard).await?;
        let value = self
            .ask_register(
                ask,
                guard,
                &Request::Write {
                    ask,
                    register,
                    token,
                    value: value + 1,
                },
            )
            .await?;
        self.report(Kind::Incremented { ask, value })
            .await
            .map_err(Cut::Home)
    }

    /// Checks that the lock is held, as a holder must before each protected step.
    async fn ensure_held(&mut self, ask: Ask, guard: &LockGuard) -> Result<(), Cut> {
        let at = Instant::now();
        let valid_until = at.plus(guard.remaining());
        match guard.state() {
            // The state was read last, so if the guard is valid now it was valid at `at`.
            GuardState::Held => self
                .send(at, Kind::Held { ask, valid_until })
                .await
                .map_err(Cut::Home),
            state => {
                self.report(Kind::Lost {
                    ask,
                    why: format!("{state:?}"),
                })
                .await
                .map_err(Cut::Home)?;
                Err(Cut::Lost)
            }
        }
    }

    /// Holds the lock, mostly for no time, but sometimes long enough for watches and renewals, and
    /// for outages that last longer than these can wait: in one of 75 holds with a TTL of 3 s, and
    /// the more rarely the longer the TTL. The end of the round ends long holds.
    async fn think(&mut self, ask: Ask, ttl: Duration, guard: &LockGuard) -> Result<(), Cut> {
        let once_in = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) / 20;
        let long = self.rng.one_in(once_in) && !self.brief;
        let longest = (ttl * 5 / 2).min(ttl + OUTLAST);
        let time = if long {
            self.rng.duration(ttl / 2..longest)
        } else {
            self.rng.duration(Duration::ZERO..3 * MILLI)
        };
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until && !(long && *self.stop.borrow()) {
            if timeout(LOOK.min(until - tokio::time::Instant::now()), guard.lost())
                .await
                .is_ok()
            {
                return self.ensure_held(ask, guard).await;
            }
            if long {
                self.ensure_held(ask, guard).await?;
            }
        }
        Ok(())
    }

    async fn ask_register(
        &mut self,
        ask: Ask,
        guard: &LockGuard,
        request: &Request,
    ) -> Result<u64, Cut> {
        self.home.send(request).await?;
        match self.home.receive().await? {
            Some(Answer::Value(value)) => Ok(value),
            Some(Answer::Refused) => {
                let still_held = guard.state() == GuardState::Held;
                self.report(Kind::Refused { ask, still_held })
                    .await
                    .map_err(Cut::Home)?;
                Err(Cut::Lost)
            }
            None => Err(Cut::Home("the home is gone".into())),
        }
    }

    async fn report(&mut self, kind: Kind) -> Result<(), BoxError> {
        self.send(Instant::now(), kind).await
    }

    async fn send(&mut self, at: Instant, kind: Kind) -> Result<(), BoxError> {
        Ok(self
            .home
            .send(&Request::Report(Event {
                at,
                process: self.process,
                kind,
            }))
            .await?)
    }
}

/// Waits by yielding, because timers are too coarse for this.
async fn briefly(time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        tokio::task::yield_now().await;
    }
}
