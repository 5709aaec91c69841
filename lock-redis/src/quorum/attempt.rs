use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lock_core::backend::Signal;
use lock_core::backend::locked;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    entry,
    error::Failure,
    orphan::{LEAST, release_until_answered, undo_on},
    quorum::{acquire::Core, majority::Count, round::Vote, server::QuorumServer},
    renewal::StoredEntry,
    scripts,
    transport::reconnect::Connection,
};

/// Votes that one owner id has on the servers, or may yet get: given back on all when dropped.
pub(crate) struct Attempt {
    core: Arc<Core>,
    pub(crate) stored: Arc<StoredEntry>,
    state: Arc<AttemptState>,
    /// Begun once, and once more if the runtime has ended since, with whatever was on its way.
    given_back: [OnceLock<watch::Receiver<Count>>; 2],
}

/// Progress of the requests of one owner id.
struct AttemptState {
    stored: Arc<StoredEntry>,
    metadata: String,
    floor: u64,
    queue: QueuePart,
    progress: Mutex<Vec<Progress>>,
    /// The owner wants it no more.
    over: CancellationToken,
    closing: Signal,
}

/// Part that the queue in the store has in an attempt.
#[derive(Clone, Debug)]
pub(crate) struct QueuePart {
    /// The one whose queue counts; the others are asked past theirs.
    pub(crate) server: usize,
    /// The client's entry; empty if it has none.
    pub(crate) entry: String,
}

#[derive(Clone, Debug)]
enum Progress {
    Unsent,
    /// Without an answer so far: may take effect at any time.
    Sent,
    Absent,
    /// Granted; connections with an earlier request that was not answered may bring it back after
    /// the release.
    There(Vec<Connection>),
}

/// Reply that comes with one server's vote.
#[derive(Debug)]
pub(crate) struct Voted {
    pub(crate) server: usize,
    pub(crate) vote: Vote,
    pub(crate) failure: Option<Failure>,
}

impl Attempt {
    /// Asks every server for the lock; `tell` hears of each vote.
    pub(crate) fn ask_for(
        core: &Arc<Core>,
        stored: StoredEntry,
        metadata: Option<&str>,
        queue: QueuePart,
        tell: impl Fn(Voted) + Clone + Send + 'static,
    ) -> Self {
        let stored = Arc::new(stored);
        let state = Arc::new(AttemptState {
            stored: Arc::clone(&stored),
            metadata: metadata.map_or(String::new(), |text| format!("={text}")),
            floor: token_floor(),
            queue,
            progress: Mutex::new(vec![Progress::Unsent; core.quorum.iter().len()]),
            over: CancellationToken::new(),
            closing: core.guards.closing().clone(),
        });
        for (server, member) in core.quorum.iter().enumerate() {
            let state = Arc::clone(&state);
            let member = Arc::clone(member);
            let tell = tell.clone();
            core.guards
                .tasks()
                .spawn(async move { state.ask(server, &member, tell).await });
        }
        Self {
            core: Arc::clone(core),
            stored,
            state,
            given_back: Default::default(),
        }
    }

    /// Raises a server's counter to the token; `false` if it has not the lock any more.
    pub(crate) fn raise(
        &self,
        server: usize,
        token: u64,
        tell: impl FnOnce(Option<bool>) + Send + 'static,
    ) {
        let Some(member) = self.core.quorum.iter().nth(server).map(Arc::clone) else {
            return;
        };
        let stored = Arc::clone(&self.stored);
        self.core.guards.tasks().spawn(async move {
            let raised = async {
                entry::raise(&member.connection(&stored.keys.lock).await?, &stored, token).await
            };
            let raised = raised.await;
            if let Err(failure) = &raised {
                tracing::debug!(
                    server = member.address,
                    ?failure,
                    "a counter could not be raised"
                );
            }
            tell(member.heard(raised).ok().map(|raised| raised.is_some()));
        });
    }

    /// Releases it on every server that has it, or may have it; begun once. The answers are those
    /// of servers that granted it.
    pub(crate) fn give_back(&self) -> watch::Receiver<Count> {
        let again = self.core.guards.tasks().have_moved();
        self.given_back[usize::from(again)]
            .get_or_init(|| self.begin_to_give_back(again))
            .clone()
    }

    fn begin_to_give_back(&self, again: bool) -> watch::Receiver<Count> {
        let (sender, receiver) = watch::channel(Count::new(self.core.quorum.majority()));
        let sender = Arc::new(sender);
        let progress = self.state.end();
        for (member, progress) in self.core.quorum.iter().zip(progress) {
            let unsettled = match progress {
                Progress::There(unsettled) => unsettled,
                // Whoever sent it has ended.
                Progress::Sent if again => Vec::new(),
                // A request that is still on its way is undone by the task that sent it.
                progress => {
                    sender.send_modify(|count| {
                        count.count((!matches!(progress, Progress::Sent)).then_some(false));
                    });
                    continue;
                }
            };
            let state = Arc::clone(&self.state);
            let member = Arc::clone(member);
            let sender = Arc::clone(&sender);
            self.core.guards.tasks().spawn(async move {
                let held = state.release(&member).await;
                sender.send_modify(|count| count.count(held));
                if !unsettled.is_empty() {
                    state.undo(&member, &unsettled).await;
                }
            });
        }
        receiver
    }

    /// Gives it back, and waits for the answers of those that granted it, but no longer than they
    /// may take.
    pub(crate) async fn returned(&self, limit: Duration) {
        let mut count = self.give_back();
        // Without an answer in time the rest goes on in the background.
        let _ = tokio::time::timeout(limit, count.wait_for(Count::is_all_in)).await;
    }

    /// Gives it back, and waits until a majority has answered, or will not; says whether it had it,
    /// if that can be told.
    pub(crate) async fn released(&self) -> Option<bool> {
        let mut count = self.give_back();
        // When the client's runtime has ended, or runs no tasks until nothing is left to release,
        // what has come until then counts.
        let _ = tokio::time::timeout(
            self.stored.ttl.max(LEAST),
            count.wait_for(Count::is_complete),
        )
        .await;
        count.borrow().verdict()
    }

    /// Returns whether some request may yet take effect.
    pub(crate) fn is_in_doubt(&self) -> bool {
        locked(&self.state.progress)
            .iter()
            .any(|progress| matches!(progress, Progress::Sent))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stake")
            .field("kept", &self.stored)
            .field("reach", &*locked(&self.state.progress))
            .finish_non_exhaustive()
    }
}

impl AttemptState {
    /// One server's request, from before it is sent until it cannot take effect unnoticed any more.
    async fn ask(&self, server: usize, member: &QuorumServer, tell: impl Fn(Voted)) {
        let mut pending = Vec::new();
        let (vote, failure) = loop {
            let connection = match member.connection(&self.stored.keys.lock).await {
                Ok(connection) => connection,
                Err(failure) => break (Vote::Failed, Some(failure)),
            };
            if !self.is_sent(server) {
                break (Vote::Failed, None);
            }
            match member.heard(self.request(server, &connection).await) {
                Ok(vote @ Vote::Granted(_)) => {
                    pending.push(connection);
                    if self.is_there(server, &mut pending) {
                        break (vote, None);
                    }
                    // Nobody wants it any more.
                    break (Vote::Failed, None);
                }
                Ok(vote) => {
                    self.is_absent(server, &pending);
                    break (vote, None);
                }
                Err(failure) if failure.had_no_effect() => {
                    self.is_absent(server, &pending);
                    break (Vote::Failed, Some(failure));
                }
                Err(failure) => {
                    pending.push(connection);
                    // A connection that broke while it was idle is found broken by the next
                    // request.
                    if !failure.ends_connection() || pending.len() > 1 {
                        break (Vote::Failed, Some(failure));
                    }
                }
            }
        };
        tell(Voted {
            server,
            vote,
            failure,
        });
        if !pending.is_empty() {
            // A lost guard that somebody keeps does not end by a shutdown.
            tokio::select! {
                () = self.over.cancelled() => {}
                () = self.closing.fired() => {}
            }
            self.undo(member, &pending).await;
        }
    }

    async fn undo(&self, member: &QuorumServer, pending: &[Connection]) {
        undo_on(&member.servers, &self.closing, &self.stored, pending).await;
    }

    async fn request(&self, server: usize, connection: &Connection) -> Result<Vote, Failure> {
        let stored = &*self.stored;
        let keeps_queue = server == self.queue.server;
        let (entry, mode) = match keeps_queue {
            true => (&*self.queue.entry, "keep"),
            false => ("", "pass"),
        };
        let answer = connection.run_script(&scripts::ACQUIRE, &stored.keys, |command| {
            command
                .arg(stored.owner.as_str())
                .arg(scripts::millis(stored.ttl))
                .arg(stored.companion_ttl());
            command.arg(&self.metadata).arg(self.floor);
            command.arg(entry).arg(mode);
        });
        let answer = answer.await?;
        Ok(match scripts::parse_acquired(&answer)? {
            Ok(token) => Vote::Granted(token),
            Err(_) if keeps_queue && scripts::parse_holder(&answer).is_none() => Vote::Queued,
            Err(_) => Vote::Busy,
        })
    }

    /// Releases what the server granted; says whether it was there, if the server answers at all.
    async fn release(&self, member: &QuorumServer) -> Option<bool> {
        let StoredEntry { keys, owner, .. } = &*self.stored;
        let first =
            async { entry::release(&member.connection(&keys.lock).await?, keys, owner).await };
        match member.heard(first.await) {
            Ok(held) => Some(held),
            Err(failure) => {
                match release_until_answered(&member.servers, &self.closing, &self.stored).await {
                    // The first one may have removed it.
                    Ok(held) => Some(held || !failure.had_no_effect()),
                    Err(failure) => {
                        tracing::warn!(
                            lock = &*keys.lock,
                            server = member.address,
                            ?failure,
                            "a lock could not be released, it ends with its TTL"
                        );
                        None
                    }
                }
            }
        }
    }

    /// Returns whether the request may be sent; from here on it may take effect.
    fn is_sent(&self, server: usize) -> bool {
        let mut progress = locked(&self.progress);
        let wanted = !self.over.is_cancelled();
        if wanted {
            progress[server] = Progress::Sent;
        }
        wanted
    }

    /// Returns whether somebody will release what the server has granted.
    fn is_there(&self, server: usize, pending: &mut Vec<Connection>) -> bool {
        let mut progress = locked(&self.progress);
        let wanted = !self.over.is_cancelled();
        if wanted {
            // The last one has been answered.
            pending.pop();
            progress[server] = Progress::There(std::mem::take(pending));
        }
        wanted
    }

    fn is_absent(&self, server: usize, pending: &[Connection]) {
        if pending.is_empty() {
            locked(&self.progress)[server] = Progress::Absent;
        }
    }

    /// Lets nothing more be sent or kept; tells how far everything has got.
    fn end(&self) -> Vec<Progress> {
        self.over.cancel();
        locked(&self.progress).clone()
    }
}

/// This machine's clock in microseconds: what servers whose counters are behind it, and whose
/// clocks agree with it, take without a second request. Below 2^53, where Lua's numbers are exact.
fn token_floor() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros())
        .ok()
        .filter(|micros| *micros < 1 << 52)
        .unwrap_or_default()
}
