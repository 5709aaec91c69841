use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use etcd_client::{ResponseHeader, WatchResponse, WatchResponseStream, WatchStream};
use lock_core::backend::Pauses;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{Instant, timeout},
};

use super::{
    cluster::{Cluster, LARGEST_ANSWER, kv},
    history::StorePosition,
    watch_request::{WatchSink, WatchTarget, by_revision, probe, request},
    watch_writer::WatchWriter,
};

/// All watches of one client on one stream, re-created when the stream breaks or its member fails.
#[derive(Clone, Debug)]
pub(crate) struct Watches {
    commands: UnboundedSender<Command>,
    last_id: Arc<AtomicI64>,
}

enum Command {
    Open {
        id: i64,
        target: WatchTarget,
        sink: Arc<dyn WatchSink>,
    },
    Close {
        id: i64,
    },
}

/// Ends a watch when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    id: i64,
    commands: UnboundedSender<Command>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The task is gone when the client is: then so is the watch.
        let _ = self.commands.send(Command::Close { id: self.id });
    }
}

impl Watches {
    /// The watches of a client, and the future that serves them: it ends when the last handle and
    /// watch are dropped.
    pub(crate) fn new(cluster: Arc<Cluster>) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, received) = mpsc::unbounded_channel();
        let server = WatchServer {
            cluster,
            commands: received,
            open: HashMap::new(),
        };
        (
            Self {
                commands,
                last_id: Arc::new(AtomicI64::new(0)),
            },
            server.run(),
        )
    }

    /// Opens a watch from now on.
    pub(crate) fn open(&self, target: WatchTarget, sink: Arc<dyn WatchSink>) -> Watch {
        // Ids are never used again, so that a late answer is never taken for another watch's.
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.commands.send(Command::Open { id, target, sink });
        Watch {
            id,
            commands: self.commands.clone(),
        }
    }
}

struct WatchServer {
    cluster: Arc<Cluster>,
    commands: UnboundedReceiver<Command>,
    open: HashMap<i64, (WatchTarget, Arc<dyn WatchSink>)>,
}

/// The reason why a stream ended.
enum StreamEnd {
    /// All handles are dropped.
    Done,
    /// No watch is left.
    Idle,
    /// The stream broke, or another member is current.
    Broken,
}

/// The step that follows an answer.
enum NextStep {
    Continue,
    /// Open the stream again.
    Reopen,
    /// Find out why the server refused this watch.
    CheckRefusal(i64),
}

/// The time after which a stream that does not open is tried on another member.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl WatchServer {
    async fn run(mut self) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            while self.open.is_empty() {
                match self.commands.recv().await {
                    Some(command) => drop(self.apply(command)),
                    None => return,
                }
            }
            let started = Instant::now();
            match self.stream().await {
                StreamEnd::Done => return,
                StreamEnd::Idle => continue,
                StreamEnd::Broken => {}
            }
            for (_, sink) in self.open.values() {
                sink.interrupted();
            }
            if started.elapsed() > LONGEST_PAUSE {
                pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    /// Applies a command to the table, and returns the watch that is new or gone.
    fn apply(&mut self, command: Command) -> (i64, Option<WatchTarget>) {
        match command {
            Command::Open { id, target, sink } => {
                self.open.insert(id, (target.clone(), sink));
                (id, Some(target))
            }
            Command::Close { id } => {
                self.open.remove(&id);
                (id, None)
            }
        }
    }

    /// Opens one stream with all watches on it and serves it until it ends.
    async fn stream(&mut self) -> StreamEnd {
        let mut moves = self.cluster.moves();
        let known = self.cluster.history().known();
        let Some(&first) = self.open.keys().next() else {
            return StreamEnd::Idle;
        };
        let member = self.cluster.current();
        let Ok(Some(stream)) = timeout(OPEN_TIMEOUT, self.open_stream(member, first)).await else {
            return self.broken(member);
        };
        let (sender, mut answers) = stream.split();
        let writer = WatchWriter::start(sender);
        let mut unanswered = VecDeque::from([first]);
        for (id, (target, _)) in self.open.iter().filter(|(id, _)| **id != first) {
            writer.open(*id, target);
            unanswered.push_back(*id);
        }
        loop {
            tokio::select! {
                command = self.commands.recv() => {
                    let Some(command) = command else { return StreamEnd::Done };
                    match self.apply(command) {
                        (id, Some(target)) => {
                            writer.open(id, &target);
                            unanswered.push_back(id);
                        }
                        (id, None) => writer.close(id),
                    }
                }
                answer = next(&mut answers) => {
                    let Some(answer) = answer else { return self.broken(member) };
                    if let Some(position) = StorePosition::of(answer.header()) {
                        self.cluster.history().note(known, position);
                    }
                    let step = self.answer(&answer, &mut unanswered);
                    if self.must_reopen(step, member).await {
                        return StreamEnd::Broken;
                    }
                }
                _ = moves.changed() => return StreamEnd::Broken,
            }
        }
    }

    /// Opens a stream with its first watch.
    async fn open_stream(&self, member: usize, first: i64) -> Option<WatchStream> {
        let (target, _) = self.open.get(&first)?;
        let (key, options) = request(first, target);
        let client = self.cluster.client(member).await.ok()?;
        let mut watches = client
            .watch_client()
            .max_decoding_message_size(LARGEST_ANSWER);
        watches.watch(key, Some(options)).await.ok()
    }

    async fn must_reopen(&mut self, step: NextStep, member: usize) -> bool {
        match step {
            NextStep::Continue => false,
            NextStep::Reopen => true,
            NextStep::CheckRefusal(id) => {
                self.cluster.invalidate_token(member);
                !self.is_refused_for_good(id).await
            }
        }
    }

    /// Moves on to another member with new tokens. The member may have been restarted: its tokens
    /// are invalid then, and where its data was restored a watch with an old token would wait for
    /// ever, so that a holder would not learn of its loss.
    fn broken(&self, member: usize) -> StreamEnd {
        self.cluster.move_on(member);
        self.cluster.invalidate_tokens();
        StreamEnd::Broken
    }

    /// Hands an answer to its sink.
    fn answer(&mut self, answer: &WatchResponse, unanswered: &mut VecDeque<i64>) -> NextStep {
        let id = answer.watch_id();
        if answer.created() && answer.canceled() && id < 0 {
            // Refusals carry no id; answers to creations come in order.
            tracing::debug!(reason = answer.cancel_reason(), "watch refused");
            return unanswered
                .pop_front()
                .map_or(NextStep::Reopen, NextStep::CheckRefusal);
        }
        if answer.created() {
            answered(unanswered, id);
        }
        let Some((_, sink)) = self.open.get(&id) else {
            return NextStep::Continue;
        };
        if answer.canceled() {
            // The server gave the watch up: a new stream opens it again.
            return NextStep::Reopen;
        }
        if answer.created() {
            sink.opened(answer.header().map_or(0, ResponseHeader::revision));
        }
        for (revision, events) in by_revision(answer) {
            sink.events(revision, events);
        }
        NextStep::Continue
    }

    /// Tells a missing permission from an expired token, which is refused in the same way. A read
    /// needs the same permission, is made with a new token, and its answer is clear.
    async fn is_refused_for_good(&mut self, id: i64) -> bool {
        let Some((target, sink)) = self.open.get(&id) else {
            return true;
        };
        let answer = self.cluster.call(|etcd| {
            let mut kv = kv(etcd);
            let (key, options) = probe(target);
            async move { kv.get(key, Some(options)).await }
        });
        match answer.await {
            Err(failure) if !failure.transient => {
                sink.refused(failure.error);
                self.open.remove(&id);
                true
            }
            _ => false,
        }
    }
}

/// Removes an answered request. Answers come in the order of the requests, so it is the first.
fn answered(unanswered: &mut VecDeque<i64>, id: i64) {
    if let Some(at) = unanswered.iter().position(|waiting| *waiting == id) {
        unanswered.remove(at);
    }
}

async fn next(answers: &mut WatchResponseStream) -> Option<WatchResponse> {
    match answers.message().await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "watch stream broke");
            None
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { id, target, .. } => f
                .debug_struct("Open")
                .field("id", id)
                .field("watched", target)
                .finish_non_exhaustive(),
            Self::Close { id } => f.debug_struct("Close").field("id", id).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that is opened again opens all watches of the client.
    #[test]
    fn the_answers_to_many_watches_cost_no_more_each_than_those_to_few() {
        const MANY: i64 = 300_000;
        let mut unanswered = VecDeque::from_iter(0..MANY);
        let start = Instant::now();
        (0..MANY).for_each(|id| answered(&mut unanswered, id));
        assert!(unanswered.is_empty());
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }
}
