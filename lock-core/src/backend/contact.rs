use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    ErrorKind, LockError, OwnerId, Terms,
    backend::{Clock, Moment, locked},
    name::shown,
};

/// Whether a store answers, as far as its client has asked: synchronous, shared by all whose requests go the same way.
///
/// A store that fails says so; one that is frozen is asked and does not answer.
#[derive(Debug)]
pub struct Contact {
    clock: Clock,
    silence: Mutex<Option<Silence>>,
    holder: Mutex<Option<String>>,
}

/// What was asked and not answered, nor has anything been since.
#[derive(Clone, Debug)]
struct Silence {
    since: Moment,
    failure: Option<LockError>,
}

impl Contact {
    /// Nothing has been asked.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, silence: Mutex::default(), holder: Mutex::default() })
    }

    /// A request is sent.
    pub fn asked(&self) {
        let now = self.clock.now();
        locked(&self.silence).get_or_insert(Silence { since: now, failure: None });
    }

    /// The store has answered, be it with a refusal.
    pub fn answered(&self) {
        *locked(&self.silence) = None;
    }

    /// Somebody holds the lock that all who share this wait for; as [`Patience::held_by`].
    pub fn held_by(&self, owner: &OwnerId, metadata: Option<&str>) {
        *locked(&self.holder) = Some(described(owner, metadata));
    }

    /// The store could not be reached, did not answer in time, or says that it cannot serve at the moment.
    pub fn failed(&self, failure: &LockError) {
        let now = self.clock.now();
        let mut silence = locked(&self.silence);
        silence.get_or_insert(Silence { since: now, failure: None }).failure = Some(failure.clone());
    }
}

/// How long one acquire waits, for its lock and for a store that does not answer, and what it says at the end.
///
/// A backend makes one for each acquire, reports to it what the store says, goes on after every failure that
/// [`failed`](Self::failed) does not hand back, and leaves the end to [`bounded`](crate::backend::bounded):
///
/// - When [`AcquireOptions::with_timeout`](crate::AcquireOptions::with_timeout) has passed the error is
///   [`Unavailable`](ErrorKind::Unavailable), with the last failure as its cause, if the store has not answered since it
///   failed, or for longer than a request may take, or never; else it is [`TimedOut`](ErrorKind::TimedOut), and names
///   the holder if that is known.
/// - With or without a timeout the acquire fails with `Unavailable` when the store has not answered for one TTL, or
///   for as long as a request may take if that is more: its place in the queue may be gone.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    began: Moment,
    timeout: Option<Duration>,
    /// How long a request may take.
    request: Duration,
    /// How long an outage may take.
    outage: Duration,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    contact: Arc<Contact>,
    answered: bool,
    holder: Option<String>,
}

/// Why an acquire ends without an error of its backend's.
#[derive(Debug)]
pub(super) enum Over {
    NotFree(Duration),
    NoAnswer { after: Duration, failure: Option<LockError> },
}

impl Patience {
    /// For one acquire, which begins now; `request` is how long the store may take to answer one request.
    #[must_use]
    pub fn new(contact: Arc<Contact>, terms: &Terms, request: Duration) -> Self {
        let (clock, outage) = (contact.clock, terms.ttl.max(request));
        let told = Mutex::new(Told { contact, answered: false, holder: None });
        Self { clock, began: clock.now(), timeout: terms.timeout, request, outage, told }
    }

    /// Puts up with an outage at least for so long: for a store whose servers take over from each other.
    #[must_use]
    pub fn at_least(mut self, outage: Duration) -> Self {
        self.outage = self.outage.max(outage);
        self
    }

    /// A request of this acquire is sent.
    pub fn asked(&self) {
        locked(&self.told).contact.asked();
    }

    /// The store has answered this acquire.
    pub fn answered(&self) {
        let mut told = locked(&self.told);
        told.answered = true;
        told.contact.answered();
    }

    /// A request of this acquire failed.
    ///
    /// # Errors
    ///
    /// The failure, unless it is [`Unavailable`](ErrorKind::Unavailable): then the acquire is to try again after a pause.
    pub fn failed(&self, failure: LockError) -> Result<(), LockError> {
        if failure.kind() != ErrorKind::Unavailable {
            return Err(failure);
        }
        locked(&self.told).contact.failed(&failure);
        Ok(())
    }

    /// Somebody else holds the lock; for the error if this acquire waits in vain.
    pub fn held_by(&self, owner: &OwnerId, metadata: Option<&str>) {
        locked(&self.told).holder = Some(described(owner, metadata));
    }

    /// From now on others ask for this acquire, and report to `contact` what the store says.
    pub fn follow(&self, contact: Arc<Contact>) {
        let mut told = locked(&self.told);
        let old = std::mem::replace(&mut told.contact, contact);
        let heard = locked(&old.silence).take();
        if let Some(heard) = heard {
            locked(&told.contact.silence).get_or_insert(heard);
        }
    }

    /// Waits until the acquire is to end.
    pub(super) async fn over(&self) -> Over {
        loop {
            let now = self.clock.now();
            let next = match self.at(now) {
                Ok(next) => next,
                Err(over) => return over,
            };
            // Which clock the timer is on does not matter: the instant is looked at again.
            tokio::time::sleep(next.saturating_since(now)).await;
        }
    }

    /// When to look again, or how the acquire ends at `now`.
    fn at(&self, now: Moment) -> Result<Moment, Over> {
        let told = locked(&self.told);
        let silence = locked(&told.contact.silence).clone();
        // What was not answered before is not about this acquire.
        let since = silence.as_ref().map(|silence| silence.since.max(self.began));
        let silent = since.map_or(Duration::ZERO, |since| now.saturating_since(since));
        let failure = || silence.as_ref().and_then(|silence| silence.failure.clone());
        if since.is_some() && silent >= self.outage {
            return Err(Over::NoAnswer { after: silent, failure: failure() });
        }
        let until = since.unwrap_or(now) + self.outage;
        match self.timeout {
            Some(timeout) if now >= self.began + timeout => Err(match since {
                Some(_) if silent >= self.request || failure().is_some() || !told.answered => {
                    Over::NoAnswer { after: if told.answered { silent } else { timeout }, failure: failure() }
                }
                _ => Over::NotFree(timeout),
            }),
            Some(timeout) => Ok(until.min(self.began + timeout)),
            None => Ok(until),
        }
    }

    pub(super) fn error(&self, over: Over) -> LockError {
        match over {
            Over::NotFree(timeout) => {
                let told = locked(&self.told);
                let holder = locked(&told.contact.holder).clone().or_else(|| told.holder.clone());
                let holder = holder.map(|holder| format!("; it is held by {holder}"));
                LockError::new(ErrorKind::TimedOut, format!("the lock was not free within {timeout:?}{}", holder.unwrap_or_default()))
            }
            Over::NoAnswer { after, failure } => {
                let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)).max(Duration::from_millis(1));
                let error = LockError::new(ErrorKind::Unavailable, format!("the store did not answer for {after:?}")).indeterminate();
                match failure {
                    Some(failure) => error.caused_by(failure),
                    None => error,
                }
            }
        }
    }
}

/// Whoever writes to the store chooses these texts.
fn described(owner: &OwnerId, metadata: Option<&str>) -> String {
    let note = metadata.map(|note| format!(", {}", shown(note))).unwrap_or_default();
    format!("{}{note}", shown(owner.as_str()).trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::{AcquireOptions, Capabilities, Consistency, RetryAdvice};

    const TTL: Duration = Duration::from_secs(30);
    const REQUEST: Duration = Duration::from_secs(6);
    const SECOND: Duration = Duration::from_secs(1);

    fn patience(timeout: Option<Duration>) -> Patience {
        let options = timeout.map_or(AcquireOptions::new(), |timeout| AcquireOptions::new().with_timeout(timeout));
        let terms = options.resolve(&Capabilities::new("test", Consistency::BestEffort), TTL).unwrap();
        Patience::new(Contact::new(Clock::Tokio), &terms, REQUEST)
    }

    fn refused() -> LockError {
        LockError::new(ErrorKind::Unavailable, "cannot connect to 10.0.0.7:2379").caused_by("connection refused")
    }

    async fn end(patience: &Patience) -> LockError {
        patience.error(patience.over().await)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_not_free_and_names_its_holder() {
        let patience = patience(Some(SECOND));
        patience.asked();
        patience.answered();
        patience.held_by(&OwnerId::new("7f3a"), Some("nightly\nreport"));
        let error = end(&patience).await;
        assert_eq!(error.to_string(), r#"timed out: the lock was not free within 1s; it is held by 7f3a, "nightly\nreport""#);
        assert_eq!(patience.clock.now().saturating_since(patience.began), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_failed_last_is_unavailable_and_says_why() {
        let patience = patience(Some(SECOND));
        patience.answered();
        patience.failed(refused()).unwrap();
        let error = end(&patience).await;
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetryAdvice::Later));
        assert!(error.to_string().contains("10.0.0.7:2379: connection refused") && error.source().is_some(), "{error}");
        patience.answered();
        assert_eq!(end(&patience).await.kind(), ErrorKind::TimedOut, "it has answered since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_store_is_unavailable() {
        let fresh = patience(Some(SECOND));
        fresh.asked();
        assert_eq!(end(&fresh).await.to_string(), "unavailable: the store did not answer for 1s", "it has never answered");
        for (asked_before, kind) in [(SECOND, ErrorKind::TimedOut), (REQUEST, ErrorKind::Unavailable)] {
            let patience = patience(Some(REQUEST * 2));
            patience.answered();
            tokio::time::advance(REQUEST * 2 - asked_before).await;
            patience.asked();
            assert_eq!(end(&patience).await.kind(), kind, "asked {asked_before:?} before the end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_a_wait_without_a_bound_after_one_ttl() {
        let patience = patience(None);
        tokio::time::advance(TTL * 5).await;
        patience.asked();
        patience.failed(refused()).unwrap();
        let (began, mut over) = (patience.clock.now(), Box::pin(end(&patience)));
        tokio::time::timeout(TTL - SECOND, &mut over).await.unwrap_err();
        patience.answered();
        patience.asked();
        tokio::time::timeout(TTL - SECOND, &mut over).await.unwrap_err();
        assert_eq!(over.await.kind(), ErrorKind::Unavailable);
        let lasted = patience.clock.now().saturating_since(began);
        assert!((TTL * 2 - SECOND..TTL * 2).contains(&lasted), "the outage began when the last answer came, not before: {lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_did_not_hear_before_does_not_count() {
        let contact = Contact::new(Clock::Tokio);
        contact.asked();
        tokio::time::advance(TTL * 2).await;
        let terms = AcquireOptions::new().resolve(&Capabilities::new("test", Consistency::BestEffort), TTL).unwrap();
        let patience = Patience::new(contact, &terms, REQUEST);
        tokio::time::timeout(TTL - SECOND, patience.over()).await.unwrap_err();
        patience.over().await;
    }

    #[test]
    fn a_refusal_is_handed_back() {
        let refusal = LockError::new(ErrorKind::PermissionDenied, "no");
        assert_eq!(patience(None).failed(refusal).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_goes_along_to_whom_is_followed() {
        let (patience, line) = (patience(Some(SECOND)), Contact::new(Clock::Tokio));
        patience.failed(refused()).unwrap();
        patience.follow(Arc::clone(&line));
        assert!(end(&patience).await.to_string().contains("refused"));
        line.answered();
        assert_eq!(end(&patience).await.kind(), ErrorKind::TimedOut);
    }
}
