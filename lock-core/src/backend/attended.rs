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

/// Gives up attempts whose callers do not poll them, so that nobody else waits for a caller that does not look.
///
/// A future can be kept without being polled: in a `select!` whose other branch takes long, or in a struct. What it was granted
/// meanwhile would block a lock for as long as the client lives. So an attempt that was not polled for its patience, which is the TTL
/// of what it asks for, is dropped, and undone by that as any that is cancelled. When its caller polls again it begins anew.
#[derive(Clone, Default)]
pub struct Attended(Arc<Attempts>);

#[derive(Default)]
struct Attempts {
    all: Mutex<Slab<Arc<dyn Attempt>>>,
    first: Notify,
}

trait Attempt: Send + Sync {
    fn patience(&self) -> Duration;
    fn look(&self, now: Instant);
}

/// How often to look at all attempts, at most and at least; otherwise eight times within the least patience.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

impl Attended {
    /// Without attempts; [`serve`](Self::serve) gives them up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs an attempt; another one whenever its caller has not polled for longer than `patience`. One of the client's tasks must
    /// [serve](Self::serve).
    ///
    /// # Cancel safety
    ///
    /// As that of the attempt, which is dropped.
    pub async fn run<F>(&self, patience: Duration, mut attempt: impl FnMut() -> F) -> F::Output
    where
        F: Future + Send + 'static,
    {
        let kept = Registered::new(self, patience);
        poll_fn(|context| kept.attempt.poll(context, &mut attempt)).await
    }

    /// Looks at the attempts for as long as it is polled.
    pub async fn serve(self) {
        loop {
            let all: Vec<_> = locked(&self.0.all).iter().map(|(_, attempt)| Arc::clone(attempt)).collect();
            let (now, least) = (Instant::now(), all.iter().map(|attempt| attempt.patience()).min());
            all.into_iter().for_each(|attempt| attempt.look(now));
            match least {
                Some(least) => tokio::time::sleep((least / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await,
                None => self.0.first.notified().await,
            }
        }
    }
}

impl fmt::Debug for Attended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attended").field("attempts", &locked(&self.0.all).len()).finish_non_exhaustive()
    }
}

/// One caller's place in the table.
struct Registered<F: Future + Send + 'static> {
    id: usize,
    attempt: Arc<Kept<F>>,
    attempts: Weak<Attempts>,
}

impl<F: Future + Send + 'static> Registered<F> {
    fn new(attended: &Attended, patience: Duration) -> Self {
        let state = State { future: None, polled: Instant::now(), reminded: None, waker: None };
        let attempt = Arc::new(Kept { patience, state: Mutex::new(state) });
        let id = {
            let mut all = locked(&attended.0.all);
            if all.is_empty() {
                attended.0.first.notify_one();
            }
            all.insert(Arc::clone(&attempt) as _)
        };
        Self { id, attempt, attempts: Arc::downgrade(&attended.0) }
    }
}

impl<F: Future + Send + 'static> Drop for Registered<F> {
    fn drop(&mut self) {
        if let Some(attempts) = self.attempts.upgrade() {
            locked(&attempts.all).try_remove(self.id);
        }
        // Not left to whoever looks at it just now.
        let future = locked(&self.attempt.state).future.take();
        drop(future);
    }
}

struct Kept<F> {
    patience: Duration,
    /// Locked while the future is polled: what it yields is taken, or given up, and never both.
    state: Mutex<State<F>>,
}

struct State<F> {
    future: Option<Pin<Box<F>>>,
    polled: Instant,
    /// When its caller was woken because it had not polled for half of the patience.
    reminded: Option<Instant>,
    waker: Option<Waker>,
}

impl<F: Future> Kept<F> {
    fn poll(&self, context: &mut Context<'_>, attempt: impl FnOnce() -> F) -> Poll<F::Output> {
        let mut state = locked(&self.state);
        (state.polled, state.reminded) = (Instant::now(), None);
        if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        let output = state.future.get_or_insert_with(|| Box::pin(attempt())).as_mut().poll(context);
        if output.is_ready() {
            state.future = None;
        }
        output
    }
}

impl<F: Future + Send> Attempt for Kept<F> {
    fn patience(&self) -> Duration {
        self.patience
    }

    fn look(&self, now: Instant) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            // It is being polled.
            Err(TryLockError::WouldBlock) => return,
        };
        let idle = now.saturating_duration_since(state.polled);
        if state.future.is_none() || idle < self.patience / 2 {
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
            Some(reminded) if idle >= self.patience && now.saturating_duration_since(reminded) >= self.patience / 4 => {
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

    fn served() -> Attended {
        let attended = Attended::new();
        tokio::spawn(attended.clone().serve());
        attended
    }

    /// An attempt to get the only permit of a lock.
    fn acquire(lock: &Arc<Semaphore>) -> impl Future<Output = OwnedSemaphorePermit> + Send + 'static {
        let lock = Arc::clone(lock);
        async move { lock.acquire_owned().await.unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_polled_is_given_up_and_begins_anew() {
        let (attended, lock) = (served(), Arc::new(Semaphore::new(1)));
        let held = acquire(&lock).await;
        let mut late = Box::pin(attended.run(TTL, || acquire(&lock)));
        assert!(timeout(Duration::ZERO, &mut late).await.is_err());
        let next = tokio::spawn(acquire(&lock));
        drop(held);
        let start = Instant::now();
        let held = next.await.unwrap();
        assert!((TTL..TTL * 5 / 4).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert!(timeout(TTL * 3, &mut late).await.is_err());
        drop(held);
        drop(late.await);
        assert!(locked(&attended.0.all).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_polled_when_it_is_woken_stays() {
        let (attended, lock, begun) = (served(), Arc::new(Semaphore::new(0)), AtomicUsize::new(0));
        let attempt = || {
            begun.fetch_add(1, SeqCst);
            acquire(&lock)
        };
        assert!(timeout(TTL * 10, attended.run(TTL, attempt)).await.is_err());
        assert_eq!(begun.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_whose_thread_was_blocked_is_reminded_first() {
        let (attended, lock, begun) = (served(), Arc::new(Semaphore::new(0)), AtomicUsize::new(0));
        let attempt = || {
            begun.fetch_add(1, SeqCst);
            acquire(&lock)
        };
        let mut late = Box::pin(attended.run(TTL, attempt));
        assert!(timeout(Duration::ZERO, &mut late).await.is_err());
        tokio::time::advance(TTL * 3).await;
        sleep(TTL / 8).await;
        assert!(timeout(TTL * 3, &mut late).await.is_err());
        assert_eq!(begun.load(SeqCst), 1);
    }
}
