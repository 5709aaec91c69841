//! The store behind a simulated network: every message takes time, may be frozen on the way, and a
//! reply may be lost.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_core::{
    ErrorKind, LockError,
    backend::{Clock, Moment},
};
use tokio::sync::{oneshot, watch};

use crate::{client::Client, defects::simulated::Defect, state::State};

/// Time that a message takes one way.
const LATENCY: Duration = Duration::from_millis(1);
/// Time for which a client waits for a reply.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) defect: Defect,
    state: Mutex<State>,
    link: watch::Sender<Link>,
    changes: Mutex<watch::Sender<u64>>,
    clients: Mutex<Vec<Weak<Client>>>,
    last_client: AtomicU64,
    last_message: AtomicU64,
    /// The message whose turn it is: requests arrive in the order in which they were sent.
    turn: watch::Sender<u64>,
}

#[derive(Clone, Debug, Default)]
struct Link {
    frozen: bool,
    delay: Duration,
    /// Counts the lives of the server.
    life: u64,
}

impl Store {
    pub(crate) fn new(defect: Defect) -> Arc<Self> {
        Arc::new(Self {
            defect,
            state: Mutex::new(State::new(defect)),
            link: watch::Sender::default(),
            changes: Mutex::default(),
            clients: Mutex::default(),
            last_client: AtomicU64::new(0),
            last_message: AtomicU64::new(0),
            turn: watch::Sender::new(1),
        })
    }

    pub(crate) fn client(self: &Arc<Self>) -> Arc<Client> {
        let client = Client::new(Arc::clone(self), self.last_client.fetch_add(1, SeqCst) + 1);
        locked(&self.clients).push(Arc::downgrade(&client));
        client
    }

    /// Fires after every change that happens from now on, until the server dies.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        locked(&self.changes).subscribe()
    }

    /// Sends a request, which takes effect whether or not the caller waits for the reply.
    pub(crate) async fn call<R: Send + 'static>(
        self: &Arc<Self>,
        request: impl FnOnce(&mut State, Moment) -> R + Send + 'static,
    ) -> Result<R, LockError> {
        let (reply_to, reply) = oneshot::channel();
        let store = Arc::clone(self);
        let life = self.link.borrow().life;
        let message = self.last_message.fetch_add(1, SeqCst) + 1;
        tokio::spawn(async move {
            let arrived = store.travel(LATENCY, life).await;
            // The sender lives in the store.
            let _ = store
                .turn
                .subscribe()
                .wait_for(|turn| *turn == message)
                .await;
            let result = arrived.then(|| store.apply(request));
            store.turn.send_modify(|turn| *turn += 1);
            if let Some(result) = result {
                let delay = store.link.borrow().delay;
                if store.travel(LATENCY + delay, life).await {
                    // The caller may have gone.
                    let _ = reply_to.send(result);
                }
            }
        });
        match tokio::time::timeout(PATIENCE, reply).await {
            Ok(Ok(result)) => Ok(result),
            _ => Err(
                LockError::new(ErrorKind::Unavailable, "the store did not answer").indeterminate(),
            ),
        }
    }

    /// Applies a request that the harness makes behind the clients' backs.
    pub(crate) fn apply<R>(self: &Arc<Self>, request: impl FnOnce(&mut State, Moment) -> R) -> R {
        let now = Clock::Tokio.now();
        let mut state = locked(&self.state);
        state.expire(now);
        let result = request(&mut state, now);
        let removed = std::mem::take(&mut state.removed);
        let version = state.version;
        drop(state);
        locked(&self.changes).send_if_modified(|seen| std::mem::replace(seen, version) != version);
        let silent = matches!(
            self.defect,
            Defect::LossIsNotPushed
                | Defect::RenewalWithoutOwnerCheck
                | Defect::RenewalRecreatesTheEntry
                | Defect::NotHeldIsRetried
        );
        if !removed.is_empty() && !silent {
            let store = Arc::clone(self);
            let life = self.link.borrow().life;
            tokio::spawn(async move {
                if store.travel(LATENCY, life).await {
                    let clients: Vec<_> = locked(&store.clients)
                        .iter()
                        .filter_map(Weak::upgrade)
                        .collect();
                    clients
                        .iter()
                        .for_each(|client| removed.iter().for_each(|owner| client.removed(owner)));
                }
            });
        }
        result
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.link.send_modify(|link| link.frozen = frozen);
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.link.send_modify(|link| link.delay = delay);
    }

    /// Kills the process and starts it again on the same data; messages on their way are lost.
    pub(crate) fn restart(self: &Arc<Self>) {
        self.link.send_modify(|link| link.life += 1);
        self.apply(|state, _| state.restart());
        *locked(&self.changes) = watch::Sender::default();
    }

    /// True once a message arrives; false if it is lost.
    async fn travel(&self, time: Duration, life: u64) -> bool {
        tokio::time::sleep(time).await;
        let mut link = self.link.subscribe();
        let arrived = link
            .wait_for(|link| !link.frozen || link.life != life)
            .await;
        arrived.is_ok_and(|link| link.life == life)
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
