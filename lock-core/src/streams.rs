use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{
    Stream, StreamExt,
    stream::{BoxStream, Fuse},
};

use crate::{LockError, LockInfo};

/// Holders of a lock, now and whenever they change; returned by
/// [`watch`](crate::DistributedLockExt::watch).
///
/// A [`Stream`] whose first item is the current state, followed by an item for every change that is
/// still true when it is polled: a change that came and went between two polls may be left out, and
/// the same state may be reported twice. `None` is a lock that nobody holds. After an error that
/// [may pass](LockError::retry) it goes on with the state at that time; after any other it ends.
/// Keeps its client alive, as a clone of it does.
#[must_use = "a watch does nothing unless it is polled"]
pub struct LockWatch(Fuse<BoxStream<'static, Result<Option<LockInfo>, LockError>>>);

/// Locks that somebody holds; returned by [`list`](crate::DistributedLock::list).
///
/// A [`Stream`], read from the store piece by piece: each item was true when it was read, but all
/// of them together may never have been. An error ends it.
#[must_use = "a list does nothing unless it is polled"]
pub struct LockList(Option<BoxStream<'static, Result<LockInfo, LockError>>>);

impl LockWatch {
    /// Wraps a backend's stream.
    pub fn new(
        stream: impl Stream<Item = Result<Option<LockInfo>, LockError>> + Send + 'static,
    ) -> Self {
        Self(stream.boxed().fuse())
    }

    /// The next item, for those who do not use the combinators of a stream library.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Result<Option<LockInfo>, LockError>> {
        StreamExt::next(self).await
    }
}

impl LockList {
    /// Wraps a backend's stream.
    pub fn new(stream: impl Stream<Item = Result<LockInfo, LockError>> + Send + 'static) -> Self {
        Self(Some(stream.boxed()))
    }

    /// The next item, for those who do not use the combinators of a stream library.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Result<LockInfo, LockError>> {
        StreamExt::next(self).await
    }
}

impl Stream for LockWatch {
    type Item = Result<Option<LockInfo>, LockError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl Stream for LockList {
    type Item = Result<LockInfo, LockError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let item = ready!(stream.as_mut().poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(item)
    }
}

impl fmt::Debug for LockWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockWatch").finish_non_exhaustive()
    }
}

impl fmt::Debug for LockList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockList").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn what_has_ended_stays_ended() {
        let error = || LockError::new(ErrorKind::Shutdown, "over");
        let mut list = LockList::new(stream::iter([Err(error()), Err(error())]));
        assert!(list.next().await.is_some_and(|info| info.is_err()));
        assert!(
            list.next().await.is_none() && list.next().await.is_none(),
            "an error ends it"
        );
        let mut watch = LockWatch::new(stream::unfold(Some(()), async |left| {
            left?;
            Some((Ok(None), None))
        }));
        assert!(watch.next().await.is_some());
        assert!(watch.next().await.is_none() && watch.next().await.is_none());
    }
}
