use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, TryLockError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::{sync::Notify, time::Instant};

use crate::sync::locked;

/// Gives up attempts whose callers do not poll them, so that nobody else waits for a caller that
/// does not look.
///
/// A future can be kept without being polled: in a `select!` whose other branch takes long, or in a
/// struct. A lock granted to it meanwhile would be blocked for as long as the client lives. So an
/// attempt that was not polled for its limit, which is the TTL that it asks for, is dropped, and
/// thereby undone like any that is cancelled. When its caller polls again it starts over.
#[derive(Clone, Default)]
pub struct Watchdog(Arc<Attempts>);

#[derive(Default)]
struct Attempts {
    all: Mutex<Slab<Arc<dyn Attempt>>>,
    first: Notify,
}

trait Attempt: Send + Sync {
    fn unpolled_limit(&self) -> Duration;
    fn look(&self, now: Instant);
}

/// Bounds of the pause between two looks at all attempts; within them, eight looks fit into the
/// least limit.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

impl Watchdog {
    /// A watchdog without attempts; [`serve`](Self::serve) gives them up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs an attempt, and another one whenever its caller has not polled for longer than
    /// `unpolled_limit`. One of the client's tasks must [serve](Self::serve).
    ///
    /// # Cancel safety
    ///
    /// As that of the attempt, which is dropped.
    pub async fn run<F>(
        &self,
        unpolled_limit: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> F::Output
    where
        F: Future + Send + 'static,
    {
        let registered = Registration::new(self, unpolled_limit);
        poll_fn(|context| registered.attempt.poll(context, &mut attempt)).await
    }

    /// Looks at the attempts for as long as it is polled.
    pub async fn serve(self) {
        loop {
            let all: Vec<_> = locked(&self.0.all)
                .iter()
                .map(|(_, attempt)| Arc::clone(attempt))
                .collect();
            let now = Instant::now();
            let least = all.iter().map(|attempt| attempt.unpolled_limit()).min();
            all.into_iter().for_each(|attempt| attempt.look(now));
            match least {
                Some(least) => {
                    tokio::time::sleep((least / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
                }
                None => self.0.first.notified().await,
            }
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("attempts", &locked(&self.0.all).len())
            .finish_non_exhaustive()
    }
}

/// One caller's place in the table.
struct Registration<F: Future + Send + 'static> {
    id: usize,
    attempt: Arc<SharedAttempt<F>>,
    attempts: Weak<Attempts>,
}

impl<F: Future + Send + 'static> Registration<F> {
    fn new(watchdog: &Watchdog, unpolled_limit: Duration) -> Self {
        let state = State {
            future: None,
            polled: Instant::now(),
            reminded: None,
            waker: None,
        };
        let attempt = Arc::new(SharedAttempt {
            unpolled_limit,
            state: Mutex::new(state),
        });
        let id = {
            let mut all = locked(&watchdog.0.all);
            if all.is_empty() {
                watchdog.0.first.notify_one();
            }
            all.insert(Arc::clone(&attempt) as _)
        };
        Self {
            id,
            attempt,
            attempts: Arc::downgrade(&watchdog.0),
        }
    }
}

impl<F: Future + Send + 'static> Drop for Registration<F> {
    fn drop(&mut self) {
        if let Some(attempts) = self.attempts.upgrade() {
            locked(&attempts.all).try_remove(self.id);
        }
        // Not left to a task that looks at it just now.
        let future = locked(&self.attempt.state).future.take();
        drop(future);
    }
}

struct SharedAttempt<F> {
    unpolled_limit: Duration,
    /// Locked while the future is polled: its output is taken, or given up, and never both.
    state: Mutex<State<F>>,
}

struct State<F> {
    future: Option<Pin<Box<F>>>,
    polled: Instant,
    /// Instant at which its caller was woken because it had not polled for half of the limit.
    reminded: Option<Instant>,
    waker: Option<Waker>,
}

impl<F: Future> SharedAttempt<F> {
    fn poll(&self, context: &mut Context<'_>, attempt: impl FnOnce() -> F) -> Poll<F::Output> {
        let mut state = locked(&self.state);
        (state.polled, state.reminded) = (Instant::now(), None);
        if state
            .waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(context.waker()))
        {
            state.waker = Some(context.waker().clone());
        }
        let output = state
            .future
            .get_or_insert_with(|| Box::pin(attempt()))
            .as_mut()
            .poll(context);
        if output.is_ready() {
            state.future = None;
        }
        output
    }
}

impl<F: Future + Send> Attempt for SharedAttempt<F> {
    fn unpolled_limit(&self) -> Duration {
        self.unpolled_limit
    }

    fn look(&self, now: Instant) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            // It is being polled.
            Err(TryLockError::WouldBlock) => return,
        };
        let idle = now.saturating_duration_since(state.polled);
        if state.future.is_none() || idle < self.unpolled_limit / 2 {
            return;
        }
        match state.reminded {
            None => {
                state.reminded = Some(now);
                let waker = state.waker.clone();
                drop(state);
                waker.iter().for_each(Waker::wake_by_ref);
            }
            // A caller whose thread was blocked for a while is not taken by surprise.
            Some(reminded)
                if idle >= self.unpolled_limit
                    && now.saturating_duration_since(reminded) >= self.unpolled_limit / 4 =>
            {
                let future = state.future.take();
                drop(state);
                drop(future);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::{
        sync::{OwnedSemaphorePermit, Semaphore},
        time::{sleep, timeout},
    };

    use super::*;

    const TTL: Duration = Duration::from_secs(8);

    fn served() -> Watchdog {
        let watchdog = Watchdog::new();
        tokio::spawn(watchdog.clone().serve());
        watchdog
    }

    /// An attempt to get the only permit of a lock.
    fn acquire(
        lock: &Arc<Semaphore>,
    ) -> impl Future<Output = OwnedSemaphorePermit> + Send + 'static {
        let lock = Arc::clone(lock);
        async move { lock.acquire_owned().await.unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_polled_is_given_up_and_begins_anew() {
        let watchdog = served();
        let lock = Arc::new(Semaphore::new(1));
        let held = acquire(&lock).await;
        let mut late = Box::pin(watchdog.run(TTL, || acquire(&lock)));
        assert!(timeout(Duration::ZERO, &mut late).await.is_err());
        let next = tokio::spawn(acquire(&lock));
        drop(held);
        let start = Instant::now();
        let held = next.await.unwrap();
        assert!(
            (TTL..TTL * 5 / 4).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
        assert!(timeout(TTL * 3, &mut late).await.is_err());
        drop(held);
        drop(late.await);
        assert!(locked(&watchdog.0.all).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_polled_when_it_is_woken_stays() {
        let watchdog = served();
        let lock = Arc::new(Semaphore::new(0));
        let begun = AtomicUsize::new(0);
        let attempt = || {
            begun.fetch_add(1, SeqCst);
            acquire(&lock)
        };
        assert!(timeout(TTL * 10, watchdog.run(TTL, attempt)).await.is_err());
        assert_eq!(begun.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_whose_thread_was_blocked_is_reminded_first() {
        let watchdog = served();
        let lock = Arc::new(Semaphore::new(0));
        let begun = AtomicUsize::new(0);
        let attempt = || {
            begun.fetch_add(1, SeqCst);
            acquire(&lock)
        };
        let mut late = Box::pin(watchdog.run(TTL, attempt));
        assert!(timeout(Duration::ZERO, &mut late).await.is_err());
        tokio::time::advance(TTL * 3).await;
        sleep(TTL / 8).await;
        assert!(timeout(TTL * 3, &mut late).await.is_err());
        assert_eq!(begun.load(SeqCst), 1);
    }
}
