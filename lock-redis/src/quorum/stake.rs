use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lock_core::backend::locked;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    entry,
    error::Failure,
    link::Connection,
    quorum::{ballot::Vote, core::Core, majority::Tally, member::Member},
    renewal::Kept,
    scripts,
    undo::{LEAST, release_until_answered, undo_on},
};

/// What one owner id has on the servers, or may yet have: given back on all of them when dropped.
pub(crate) struct Stake {
    core: Arc<Core>,
    pub(crate) kept: Arc<Kept>,
    trace: Arc<Trace>,
    /// Begun once, and once more if the runtime has ended since, with whatever was on its way.
    given_back: [OnceLock<watch::Receiver<Tally>>; 2],
}

/// How far the requests of one owner id have got.
struct Trace {
    kept: Arc<Kept>,
    metadata: String,
    floor: u64,
    reach: Mutex<Vec<Reach>>,
    /// The owner wants it no more.
    over: CancellationToken,
    closing: CancellationToken,
}

#[derive(Clone, Debug)]
enum Reach {
    Unsent,
    /// Without an answer so far: may take effect at any time.
    Sent,
    Absent,
    /// Granted; connections with an earlier request that was not answered may bring it back after the release.
    There(Vec<Connection>),
}

/// What one server's vote comes with.
#[derive(Debug)]
pub(crate) struct Voted {
    pub(crate) server: usize,
    pub(crate) vote: Vote,
    pub(crate) failure: Option<Failure>,
}

impl Stake {
    /// Asks every server for the lock; `tell` hears of each vote.
    pub(crate) fn ask_for(core: &Arc<Core>, kept: Kept, metadata: Option<&str>, tell: impl Fn(Voted) + Clone + Send + 'static) -> Self {
        let kept = Arc::new(kept);
        let trace = Arc::new(Trace {
            kept: Arc::clone(&kept),
            metadata: metadata.map_or(String::new(), |text| format!("={text}")),
            floor: token_floor(),
            reach: Mutex::new(vec![Reach::Unsent; core.members.iter().len()]),
            over: CancellationToken::new(),
            closing: core.holds.closing().clone(),
        });
        for (server, member) in core.members.iter().enumerate() {
            let (trace, member, tell) = (Arc::clone(&trace), Arc::clone(member), tell.clone());
            core.holds.tasks().spawn(async move { trace.ask(server, &member, tell).await });
        }
        Self { core: Arc::clone(core), kept, trace, given_back: Default::default() }
    }

    /// Raises a server's counter to the token; `false` if it has not the lock any more.
    pub(crate) fn raise(&self, server: usize, token: u64, tell: impl FnOnce(Option<bool>) + Send + 'static) {
        let Some(member) = self.core.members.iter().nth(server).map(Arc::clone) else { return };
        let kept = Arc::clone(&self.kept);
        self.core.holds.tasks().spawn(async move {
            let raised = async { raise(&member.connection(&kept.keys.lock).await?, &kept, token).await };
            let raised = raised.await;
            if let Err(failure) = &raised {
                tracing::debug!(server = member.address, ?failure, "a counter could not be raised");
            }
            tell(member.heard(raised).ok());
        });
    }

    /// Releases it on every server that has it, or may have it; begun once. The answers are those of servers that granted it.
    pub(crate) fn give_back(&self) -> watch::Receiver<Tally> {
        let again = self.core.holds.tasks().have_moved();
        self.given_back[usize::from(again)].get_or_init(|| self.begin_to_give_back(again)).clone()
    }

    fn begin_to_give_back(&self, again: bool) -> watch::Receiver<Tally> {
        let (sender, receiver) = watch::channel(Tally::new(self.core.members.majority()));
        let sender = Arc::new(sender);
        let reach = self.trace.end();
        for (member, reach) in self.core.members.iter().zip(reach) {
            let strays = match reach {
                Reach::There(strays) => strays,
                // Whoever sent it has ended.
                Reach::Sent if again => Vec::new(),
                // What is still on its way is undone by whoever sent it.
                reach => {
                    sender.send_modify(|tally| tally.count((!matches!(reach, Reach::Sent)).then_some(false)));
                    continue;
                }
            };
            let (trace, member, sender) = (Arc::clone(&self.trace), Arc::clone(member), Arc::clone(&sender));
            self.core.holds.tasks().spawn(async move {
                let held = trace.release(&member).await;
                sender.send_modify(|tally| tally.count(held));
                if !strays.is_empty() {
                    trace.undo(&member, &strays).await;
                }
            });
        }
        receiver
    }

    /// Gives it back, and waits for the answers of those that granted it, but no longer than they may take.
    pub(crate) async fn returned(&self, limit: Duration) {
        let mut tally = self.give_back();
        // Without an answer in time the rest goes on in the background.
        let _ = tokio::time::timeout(limit, tally.wait_for(Tally::is_all_in)).await;
    }

    /// Gives it back, and waits until a majority has answered, or will not; says whether it had it, if that can be told.
    pub(crate) async fn released(&self) -> Option<bool> {
        let mut tally = self.give_back();
        // When the client's runtime has ended, or runs no tasks until nothing is left to release, what has come until then counts.
        let _ = tokio::time::timeout(self.kept.ttl.max(LEAST), tally.wait_for(Tally::is_complete)).await;
        tally.borrow().verdict()
    }

    /// Whether some request may yet take effect.
    pub(crate) fn is_in_doubt(&self) -> bool {
        locked(&self.trace.reach).iter().any(|reach| matches!(reach, Reach::Sent))
    }
}

impl Drop for Stake {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Debug for Stake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stake").field("kept", &self.kept).field("reach", &*locked(&self.trace.reach)).finish_non_exhaustive()
    }
}

impl Trace {
    /// One server's request, from before it is sent until it cannot take effect unnoticed any more.
    async fn ask(&self, server: usize, member: &Member, tell: impl Fn(Voted)) {
        let mut pending = Vec::new();
        let (vote, failure) = loop {
            let connection = match member.connection(&self.kept.keys.lock).await {
                Ok(connection) => connection,
                Err(failure) => break (Vote::Failed, Some(failure)),
            };
            if !self.is_sent(server) {
                break (Vote::Failed, None);
            }
            match member.heard(self.request(&connection).await) {
                Ok(Some(token)) => {
                    pending.push(connection);
                    if self.is_there(server, &mut pending) {
                        break (Vote::Granted(token), None);
                    }
                    // Nobody wants it any more.
                    break (Vote::Failed, None);
                }
                Ok(None) => {
                    self.is_absent(server, &pending);
                    break (Vote::Busy, None);
                }
                Err(failure) if failure.had_no_effect() => {
                    self.is_absent(server, &pending);
                    break (Vote::Failed, Some(failure));
                }
                Err(failure) => {
                    pending.push(connection);
                    // A connection that broke while it was idle is found broken by the next request.
                    if !failure.ends_connection() || pending.len() > 1 {
                        break (Vote::Failed, Some(failure));
                    }
                }
            }
        };
        tell(Voted { server, vote, failure });
        if !pending.is_empty() {
            // A lost guard that somebody keeps does not end by a shutdown.
            tokio::select! {
                () = self.over.cancelled() => {}
                () = self.closing.cancelled() => {}
            }
            self.undo(member, &pending).await;
        }
    }

    async fn undo(&self, member: &Member, pending: &[Connection]) {
        undo_on(&member.servers, &self.closing, &self.kept, pending).await;
    }

    /// The token, unless somebody else has the lock.
    async fn request(&self, connection: &Connection) -> Result<Option<u64>, Failure> {
        let Kept { keys, owner, ttl, .. } = &*self.kept;
        let answer = connection.run_script(&scripts::ACQUIRE, keys, |command| {
            command.arg(owner.as_str()).arg(scripts::millis(*ttl)).arg(scripts::companion_ttl(*ttl));
            command.arg(&self.metadata).arg("0").arg(self.floor);
        });
        Ok(scripts::parse_acquired(&answer.await?)?.ok())
    }

    /// Releases what the server granted; says whether it was there, if the server answers at all.
    async fn release(&self, member: &Member) -> Option<bool> {
        let Kept { keys, owner, .. } = &*self.kept;
        let first = async { entry::release(&member.connection(&keys.lock).await?, keys, owner, !self.metadata.is_empty()).await };
        match member.heard(first.await) {
            Ok(held) => Some(held),
            Err(failure) => match release_until_answered(&member.servers, &self.closing, &self.kept).await {
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
            },
        }
    }

    /// Whether the request may be sent; from here on it may take effect.
    fn is_sent(&self, server: usize) -> bool {
        let mut reach = locked(&self.reach);
        let wanted = !self.over.is_cancelled();
        if wanted {
            reach[server] = Reach::Sent;
        }
        wanted
    }

    /// Whether somebody will release what the server has granted.
    fn is_there(&self, server: usize, pending: &mut Vec<Connection>) -> bool {
        let mut reach = locked(&self.reach);
        let wanted = !self.over.is_cancelled();
        if wanted {
            // The last one has been answered.
            pending.pop();
            reach[server] = Reach::There(std::mem::take(pending));
        }
        wanted
    }

    fn is_absent(&self, server: usize, pending: &[Connection]) {
        if pending.is_empty() {
            locked(&self.reach)[server] = Reach::Absent;
        }
    }

    /// Lets nothing more be sent or kept; tells how far everything has got.
    fn end(&self) -> Vec<Reach> {
        self.over.cancel();
        locked(&self.reach).clone()
    }
}

async fn raise(connection: &Connection, kept: &Kept, token: u64) -> Result<bool, Failure> {
    let Kept { keys, owner, ttl, .. } = kept;
    let answer = connection.run_script(&scripts::RAISE, keys, |command| {
        command.arg(owner.as_str()).arg(token).arg(scripts::companion_ttl(*ttl));
    });
    match answer.await? {
        redis::Value::Int(held @ 0..=1) => Ok(held == 1),
        _ => Err(Failure::unexpected("neither 0 nor 1 from raising a counter")),
    }
}

/// This machine's clock in microseconds: what servers whose counters are behind it agree on without a second request. Below 2^53,
/// where Lua's numbers are exact.
fn token_floor() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).ok().filter(|micros| *micros < 1 << 52).unwrap_or_default()
}
