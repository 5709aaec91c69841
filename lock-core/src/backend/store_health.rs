use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Wake, Waker},
};

use crate::{
    LockError, OwnerId,
    backend::{Clock, Moment, locked},
    parse_name::shown,
};

/// Tells whether a store answers, as far as its client has asked; shared by all whose requests go
/// the same way.
///
/// A store that fails says so; one that is frozen is asked and does not answer.
#[derive(Debug)]
pub struct StoreHealth {
    pub(super) clock: Clock,
    pub(super) silence: Mutex<Option<Silence>>,
    pub(super) holder: Mutex<Option<String>>,
}

/// Requests that were not answered, with no answer to any other since.
#[derive(Clone, Debug)]
pub(super) struct Silence {
    pub(super) since: Moment,
    pub(super) failure: Option<LockError>,
    /// Instant at which a caller was woken, perhaps by an answer, that has not looked since: from
    /// then on the silence is not the store's.
    pub(super) unread: Option<Moment>,
}

impl Silence {
    fn since(now: Moment) -> Self {
        Self {
            since: now,
            failure: None,
            unread: None,
        }
    }
}

impl StoreHealth {
    /// A store that has not been asked anything.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            silence: Mutex::default(),
            holder: Mutex::default(),
        })
    }

    /// Notes that a request is sent.
    pub fn asked(&self) {
        let now = self.clock.now();
        let mut silence = locked(&self.silence);
        if silence
            .as_ref()
            .is_none_or(|silence| silence.unread.is_some())
        {
            *silence = Some(Silence::since(now));
        }
    }

    /// Sends a request, for others as well: an answer that its caller does not look at does not
    /// count as silence of the store.
    ///
    /// The caller must still report the outcome, by [`answered`](Self::answered) or
    /// [`failed`](Self::failed).
    ///
    /// # Cancel safety
    ///
    /// As that of the request, which is dropped.
    pub async fn ask<F: Future>(self: &Arc<Self>, request: F) -> F::Output {
        self.asked();
        let mut request = pin!(request);
        let mut woken = None::<Arc<Woken>>;
        poll_fn(|context| {
            if let Some(silence) = &mut *locked(&self.silence) {
                silence.unread = None;
            }
            let woken = match woken
                .take()
                .filter(|woken| woken.caller.will_wake(context.waker()))
            {
                Some(same) => woken.insert(same),
                None => woken.insert(Arc::new(Woken {
                    health: Arc::clone(self),
                    caller: context.waker().clone(),
                })),
            };
            request
                .as_mut()
                .poll(&mut Context::from_waker(&Waker::from(Arc::clone(woken))))
        })
        .await
    }

    /// Notes that the store has answered, even if with a refusal.
    pub fn answered(&self) {
        *locked(&self.silence) = None;
    }

    /// Notes who holds the lock that all who share this wait for; as
    /// [`WaitLimit::held_by`](crate::backend::WaitLimit::held_by).
    pub fn held_by(&self, owner: &OwnerId, metadata: Option<&str>) {
        *locked(&self.holder) = Some(described(owner, metadata));
    }

    /// Notes that the store could not be reached, did not answer in time, or says that it cannot
    /// serve at the moment.
    pub fn failed(&self, failure: &LockError) {
        let now = self.clock.now();
        let mut silence = locked(&self.silence);
        let silence = silence.get_or_insert(Silence::since(now));
        (silence.failure, silence.unread) = (Some(failure.clone()), None);
    }
}

/// Wakes the caller, and notes since when it has something to look at.
struct Woken {
    health: Arc<StoreHealth>,
    caller: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let now = self.health.clock.now();
        if let Some(silence) = &mut *locked(&self.health.silence) {
            silence.unread.get_or_insert(now);
        }
        self.caller.wake_by_ref();
    }
}

/// Describes a holder, by texts that anybody who writes to the store may choose.
pub(super) fn described(owner: &OwnerId, metadata: Option<&str>) -> String {
    let note = metadata
        .map(|note| format!(", {}", shown(note)))
        .unwrap_or_default();
    format!("{}{note}", shown(owner.as_str()).trim_matches('"'))
}
