use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use etcd_client::{PutOptions, Txn, TxnOp};
use lock_core::{
    ErrorKind, FencingToken, LockError, LockGuard, LossReason, Terms,
    backend::{Entry, Grant, LossTrigger, locked},
};

use crate::{claim::Claim, note::Note, own_entry::OwnEntry, session::Sessions, watch::Watch};

/// The store's side of one guard.
#[derive(Debug)]
pub(crate) struct Held {
    entry: Arc<OwnEntry>,
    token: FencingToken,
    metadata: Option<String>,
    released: AtomicBool,
    trigger: OnceLock<LossTrigger>,
    /// The watch for the entry's deletion, once the lock has been held for a moment.
    watch: Mutex<Option<Watch>>,
}

/// Makes a guard of an entry that was seen to own the lock at a revision; `None` if its session has ended meanwhile.
pub(crate) async fn hold(claim: Claim, owned_at: i64, terms: &Terms) -> Result<Option<LockGuard>, LockError> {
    let (lease, keep) = if Sessions::needs_own(terms) {
        match claim.entry.session.hold(terms).await {
            Ok((lease, keep)) => (lease, Some(keep)),
            Err(error) if error.kind() == ErrorKind::Lost => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        (Arc::clone(claim.entry.session.lease()), None)
    };
    // A hold that has reached its maximum already is the caller's: another attempt would end in the same way.
    if lease.deadline().is_err_and(|reason| reason != LossReason::MaxHold) {
        return Ok(None);
    }
    let token = FencingToken::new(owned_at.unsigned_abs());
    let core = Arc::clone(&claim.entry.core);
    let (name, owner) = (claim.entry.name.clone(), claim.entry.prefix.owner(&claim.entry.key, claim.entry.created));
    let held = Arc::new(Held {
        entry: claim.keep(),
        token,
        metadata: terms.metadata.clone(),
        released: AtomicBool::new(false),
        trigger: OnceLock::new(),
        watch: Mutex::new(None),
    });
    let guard = core.holds.grant(Grant { name, owner, token: Some(token), lease, keep, entry: Arc::clone(&held) as _ });
    let _ = held.trigger.set(LossTrigger::of(&guard));
    if !held.entry.session.is_current() {
        // The store has gone back, and whoever ended the guards may not have seen this one.
        held.lost();
    }
    core.monitor.granted(&held);
    Ok(Some(guard))
}

impl Held {
    pub(crate) fn key(&self) -> &str {
        &self.entry.key
    }

    pub(crate) fn created(&self) -> i64 {
        self.entry.created
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// The entry was read not to be in the store any more. Its removal makes sure of that, before the key is used again.
    pub(crate) fn lost(&self) {
        if let Some(trigger) = self.trigger.get() {
            trigger.lose(LossReason::Removed);
        }
    }

    pub(crate) fn watched_by(&self, watch: Option<Watch>) {
        *locked(&self.watch) = watch;
    }

    /// Writes down the token and the time of an acquisition that had to wait: its entry could not know them.
    pub(crate) fn annotation(&self) -> Option<Txn> {
        let waited = self.token.as_u64() != self.entry.created.unsigned_abs();
        waited.then(|| {
            let note = Note::holding(self.token, self.metadata.clone()).encode();
            let put = TxnOp::put(self.key(), note, Some(PutOptions::new().with_ignore_lease()));
            Txn::new().when([self.entry.is_mine()]).and_then([put])
        })
    }
}

#[async_trait]
impl Entry for Held {
    async fn release(&self) -> Result<bool, LockError> {
        self.released.store(true, Ordering::Release);
        self.watched_by(None);
        self.entry.remove().await.map_err(|failure| {
            if !failure.transient {
                self.entry.left_behind();
            }
            failure.error
        })
    }

    fn release_now(&self) -> Option<bool> {
        self.entry.session.is_revoked().then_some(true)
    }
}
