use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;

use crate::{
    FencingToken, LockError, LockInfo, LockWatch, OwnerId, RetryAdvice, backend::ensure_runtime,
};

/// Source of a watch: reads a lock's holders, and waits until they may have changed.
#[async_trait]
pub trait WatchSource: Send + 'static {
    /// Reads who holds the lock. Any change from here on must end the next
    /// [`changed`](Self::changed).
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn look(&mut self) -> Result<Option<LockInfo>, LockError>;

    /// Waits until another look may see another holder. A backend whose store does not notify it
    /// waits for its usual pause between two looks. Dropped when the holder's lease would end by
    /// itself.
    async fn changed(&mut self);
}

/// Time that a watch waits after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Least time between a look and another that follows because a lease ends: the store may be late
/// to end it.
const LEAST: Duration = Duration::from_millis(100);

/// Makes a watch from a source: it looks again when the source says so and when the holder's lease
/// should have ended, and reports only differences. After an error that [may
/// pass](LockError::retry) it pauses for a second, after any other it ends.
pub fn watch_holders(source: impl WatchSource) -> LockWatch {
    let watching = Watching {
        source,
        told: None,
        next: Next::Look,
    };
    LockWatch::new(stream::unfold(watching, async |mut watching| {
        let item = watching.next().await?;
        Some((item, watching))
    }))
}

struct Watching<S> {
    source: S,
    /// Holders that were reported last, with their tokens.
    told: Option<Vec<(OwnerId, Option<FencingToken>)>>,
    next: Next,
}

enum Next {
    Look,
    WaitForChange { expires_in: Option<Duration> },
    Pause,
    End,
}

impl<S: WatchSource> Watching<S> {
    async fn next(&mut self) -> Option<Result<Option<LockInfo>, LockError>> {
        if let Err(error) = ensure_runtime() {
            return Some(Err(error));
        }
        loop {
            match self.next {
                Next::Look => {}
                Next::WaitForChange { expires_in: None } => self.source.changed().await,
                Next::WaitForChange {
                    expires_in: Some(left),
                } => {
                    let _ = tokio::time::timeout(left.max(LEAST), self.source.changed()).await;
                }
                Next::Pause => tokio::time::sleep(PAUSE).await,
                Next::End => return None,
            }
            let info = match self.source.look().await {
                Ok(info) => info,
                Err(error) => {
                    // After an error the same holders are reported again, to show that it has
                    // passed.
                    self.told = None;
                    self.next = if error.retry() == RetryAdvice::Never {
                        Next::End
                    } else {
                        Next::Pause
                    };
                    return Some(Err(error));
                }
            };
            let holders = info.as_ref().map_or(&[][..], |info| &info.holders);
            self.next = Next::WaitForChange {
                expires_in: holders.iter().filter_map(|holder| holder.expires_in).min(),
            };
            let seen: Vec<_> = holders
                .iter()
                .map(|holder| (holder.owner.clone(), holder.token))
                .collect();
            if self.told.as_ref() != Some(&seen) {
                self.told = Some(seen);
                return Some(Ok(info));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Arc};

    use tokio::{sync::Notify, time::Instant};

    use super::*;
    use crate::{ErrorKind, LockHolder};

    struct Script {
        answers: VecDeque<Result<Option<LockInfo>, LockError>>,
        change: Arc<Notify>,
    }

    #[async_trait]
    impl WatchSource for Script {
        async fn look(&mut self) -> Result<Option<LockInfo>, LockError> {
            self.answers
                .pop_front()
                .unwrap_or_else(|| Err(LockError::new(ErrorKind::Shutdown, "over")))
        }

        async fn changed(&mut self) {
            self.change.notified().await;
        }
    }

    fn held(owner: &str, expires_in: Option<u64>) -> Result<Option<LockInfo>, LockError> {
        let mut holder = LockHolder::new(OwnerId::new(owner));
        holder.expires_in = expires_in.map(Duration::from_secs);
        Ok(Some(LockInfo::new("a".parse()?, holder)))
    }

    fn watch(
        answers: impl IntoIterator<Item = Result<Option<LockInfo>, LockError>>,
    ) -> (LockWatch, Arc<Notify>) {
        let change = Arc::new(Notify::new());
        (
            watch_holders(Script {
                answers: answers.into_iter().collect(),
                change: Arc::clone(&change),
            }),
            change,
        )
    }

    async fn owner(watch: &mut LockWatch) -> Option<String> {
        watch
            .next()
            .await
            .unwrap()
            .unwrap()
            .map(|info| info.holder().owner.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn tells_who_holds_it_now_and_then_only_what_is_different() {
        let (mut watch, change) =
            watch([held("x", None), held("x", None), Ok(None), held("y", None)]);
        assert_eq!(owner(&mut watch).await.as_deref(), Some("x"));
        change.notify_one();
        let silent = tokio::time::timeout(Duration::from_secs(3600), watch.next()).await;
        assert!(silent.is_err(), "{silent:?}");
        change.notify_one();
        assert_eq!(owner(&mut watch).await, None);
        change.notify_one();
        assert_eq!(owner(&mut watch).await.as_deref(), Some("y"));
    }

    #[tokio::test(start_paused = true)]
    async fn looks_when_the_holders_lease_should_have_ended() {
        let (mut watch, _change) = watch([held("x", Some(30)), held("x", Some(0)), Ok(None)]);
        let start = Instant::now();
        assert_eq!(owner(&mut watch).await.as_deref(), Some("x"));
        assert_eq!(owner(&mut watch).await, None);
        assert_eq!(start.elapsed(), Duration::from_secs(30) + LEAST);
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_after_an_outage_and_ends_after_what_does_not_pass() {
        let outage = || Err(LockError::new(ErrorKind::Unavailable, "no answer"));
        let (mut watch, _change) = watch([outage(), outage(), held("x", None)]);
        let start = Instant::now();
        for _ in 0..2 {
            assert_eq!(
                watch.next().await.unwrap().unwrap_err().kind(),
                ErrorKind::Unavailable
            );
        }
        assert_eq!(owner(&mut watch).await.as_deref(), Some("x"));
        assert_eq!(start.elapsed(), PAUSE * 2);
        let (mut watch, _change) = self::watch([]);
        assert_eq!(
            watch.next().await.unwrap().unwrap_err().kind(),
            ErrorKind::Shutdown
        );
        assert!(watch.next().await.is_none());
    }
}
