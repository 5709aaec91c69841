use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use etcd_client::{EventType, ResponseHeader, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use lock_core::LockError;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    cluster::{Cluster, LARGEST_ANSWER},
    error::watch_refused,
    history::Stamp,
};

/// All watches of one client on one stream, re-created when the stream breaks or its member fails.
#[derive(Clone, Debug)]
pub(crate) struct Watches {
    commands: UnboundedSender<Command>,
    last_id: Arc<AtomicI64>,
}

/// What is watched.
#[derive(Clone, Debug)]
pub(crate) enum Watched {
    /// All keys with a prefix: their deletions, and if so wanted their creations.
    Prefix { prefix: String, creations: bool },
    /// The deletion of one key.
    Deletion(String),
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: Vec<u8>,
    /// `Some(create revision)` for a put, `None` for a deletion.
    pub(crate) created: Option<i64>,
}

/// Where the events of one watch go. Called from the task that reads the stream: must not block.
pub(crate) trait Sink: Send + Sync + 'static {
    /// The watch is open: every change after this revision is reported. Earlier ones are for the caller to read.
    fn opened(&self, revision: i64);
    /// What happened at one revision.
    fn events(&self, revision: i64, events: Vec<Event>);
    /// The watch was interrupted; [`opened`](Self::opened) follows when it is open again.
    fn interrupted(&self);
    /// The server refuses the watch, for good.
    fn refused(&self, error: LockError);
}

enum Command {
    Open { id: i64, watched: Watched, sink: Arc<dyn Sink> },
    Close { id: i64 },
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
    /// The watches of a client, and the future that serves them: it ends when the last handle and watch are dropped.
    pub(crate) fn new(cluster: Arc<Cluster>) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, received) = mpsc::unbounded_channel();
        let server = Server { cluster, commands: received, open: HashMap::new(), refused_once: None };
        (Self { commands, last_id: Arc::new(AtomicI64::new(0)) }, server.run())
    }

    /// Opens a watch from now on.
    pub(crate) fn open(&self, watched: Watched, sink: Arc<dyn Sink>) -> Watch {
        // Ids are never used again, so that a late answer is never taken for another watch's.
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.commands.send(Command::Open { id, watched, sink });
        Watch { id, commands: self.commands.clone() }
    }
}

struct Server {
    cluster: Arc<Cluster>,
    commands: UnboundedReceiver<Command>,
    open: HashMap<i64, (Watched, Arc<dyn Sink>)>,
    /// A watch that the server refused on the previous stream: perhaps for a token that had run out.
    refused_once: Option<i64>,
}

/// Why a stream ended.
enum End {
    /// Nobody needs watches any more.
    Done,
    /// No watch is left.
    Idle,
    /// The stream broke, or its member is not current any more.
    Broken,
}

/// A stream that does not open within this is tried on another member.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Server {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            while self.open.is_empty() {
                match self.commands.recv().await {
                    Some(command) => drop(self.take(command)),
                    None => return,
                }
            }
            let started = Instant::now();
            match self.stream().await {
                End::Done => return,
                End::Idle => continue,
                End::Broken => {}
            }
            for (_, sink) in self.open.values() {
                sink.interrupted();
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Applies a command to the book-keeping; says which watch is new or gone.
    fn take(&mut self, command: Command) -> (i64, Option<Watched>) {
        match command {
            Command::Open { id, watched, sink } => {
                self.open.insert(id, (watched.clone(), sink));
                (id, Some(watched))
            }
            Command::Close { id } => {
                self.open.remove(&id);
                (id, None)
            }
        }
    }

    /// Opens one stream with all watches on it and serves it until it ends.
    async fn stream(&mut self) -> End {
        let (mut moves, known) = (self.cluster.moves(), self.cluster.history().known());
        let Some((&first, (watched, _))) = self.open.iter().next() else { return End::Idle };
        let opening = self.cluster.client();
        let (member, stream) = match timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok((member, client))) => {
                let (key, options) = request(first, watched);
                let mut watches = client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
                (member, timeout(OPEN_TIMEOUT, async move { watches.watch(key, Some(options)).await }).await)
            }
            // Calls meet the same trouble, and move on.
            Ok(Err(_)) | Err(_) => return End::Broken,
        };
        let Ok(Ok(stream)) = stream else {
            self.cluster.move_on(member);
            return End::Broken;
        };
        let (sender, mut answers) = stream.split();
        let writer = Writer::start(sender);
        let mut unanswered = VecDeque::from([first]);
        for (id, (watched, _)) in self.open.iter().filter(|(id, _)| **id != first) {
            writer.open(*id, watched);
            unanswered.push_back(*id);
        }
        loop {
            tokio::select! {
                command = self.commands.recv() => {
                    let Some(command) = command else { return End::Done };
                    match self.take(command) {
                        (id, Some(watched)) => {
                            writer.open(id, &watched);
                            unanswered.push_back(id);
                        }
                        (id, None) => writer.close(id),
                    }
                }
                answer = next(&mut answers) => {
                    let Some(answer) = answer else {
                        self.cluster.move_on(member);
                        return End::Broken;
                    };
                    if let Some(stamp) = Stamp::of(answer.header()) {
                        self.cluster.history().note(known, stamp);
                    }
                    if !self.answer(&answer, &mut unanswered) {
                        // A token that has run out looks like a missing permission: try once with a new one.
                        if let Ok((_, client)) = self.cluster.client().await {
                            let _ = timeout(OPEN_TIMEOUT, client.refresh_token()).await;
                        }
                        return End::Broken;
                    }
                }
                _ = moves.changed() => return End::Broken,
            }
        }
    }

    /// Hands an answer to its sink; `false` if the stream must be opened again.
    fn answer(&mut self, answer: &WatchResponse, unanswered: &mut VecDeque<i64>) -> bool {
        let id = answer.watch_id();
        if answer.created() && answer.canceled() && id < 0 {
            // Refusals carry no id; answers to creations come in order.
            return unanswered.pop_front().is_none_or(|id| self.refused(id, answer.cancel_reason()));
        }
        if answer.created() {
            settle(unanswered, id);
            if self.refused_once == Some(id) {
                self.refused_once = None;
            }
        }
        let Some((_, sink)) = self.open.get(&id) else { return true };
        if answer.canceled() {
            // The server gave the watch up: a new stream opens it again.
            return false;
        }
        if answer.created() {
            sink.opened(answer.header().map_or(0, ResponseHeader::revision));
        }
        for (revision, events) in by_revision(answer) {
            sink.events(revision, events);
        }
        true
    }

    fn refused(&mut self, id: i64, reason: &str) -> bool {
        if self.refused_once.replace(id) != Some(id) {
            return false;
        }
        if let Some((_, sink)) = self.open.remove(&id) {
            sink.refused(watch_refused(reason));
        }
        true
    }
}

/// Answers come in the order of the requests, so the one that is looked for is the first.
fn settle(unanswered: &mut VecDeque<i64>, id: i64) {
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

/// Events grouped by the revision at which they happened, in order.
fn by_revision(answer: &WatchResponse) -> Vec<(i64, Vec<Event>)> {
    let mut groups: Vec<(i64, Vec<Event>)> = Vec::new();
    for event in answer.events() {
        let Some(kv) = event.kv() else { continue };
        let created = match event.event_type() {
            EventType::Put => Some(kv.create_revision()),
            EventType::Delete => None,
        };
        let event = Event { key: kv.key().to_vec(), created };
        match groups.last_mut() {
            Some((revision, events)) if *revision == kv.mod_revision() => events.push(event),
            _ => groups.push((kv.mod_revision(), vec![event])),
        }
    }
    groups
}

fn request(id: i64, watched: &Watched) -> (Vec<u8>, WatchOptions) {
    let options = WatchOptions::new().with_watch_id(id);
    let deletions_only = |options: WatchOptions| options.with_filters([WatchFilterType::NoPut]);
    match watched {
        Watched::Prefix { prefix, creations: true } => (prefix.as_bytes().to_vec(), options.with_prefix()),
        Watched::Prefix { prefix, creations: false } => (prefix.as_bytes().to_vec(), deletions_only(options.with_prefix())),
        Watched::Deletion(key) => (key.as_bytes().to_vec(), deletions_only(options)),
    }
}

/// Sends requests on a stream from a task of its own: the queue to the server is bounded, and a server that waits for
/// its answers to be read must not be waited for by their reader.
struct Writer {
    requests: UnboundedSender<(i64, Option<Watched>)>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(mut sender: WatchRequestSender) -> Self {
        let (requests, mut queued) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some((id, watched)) = queued.recv().await {
                let sent = match watched {
                    Some(watched) => {
                        let (key, options) = request(id, &watched);
                        sender.watch(key, Some(options)).await
                    }
                    None => sender.cancel(id).await,
                };
                if sent.is_err() {
                    // The reader sees the stream end as well.
                    return;
                }
            }
        });
        Self { requests, task }
    }

    fn open(&self, id: i64, watched: &Watched) {
        let _ = self.requests.send((id, Some(watched.clone())));
    }

    fn close(&self, id: i64) {
        let _ = self.requests.send((id, None));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { id, watched, .. } => f.debug_struct("Open").field("id", id).field("watched", watched).finish_non_exhaustive(),
            Self::Close { id } => f.debug_struct("Close").field("id", id).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that is opened again has all watches of the client to open.
    #[test]
    fn the_answers_to_many_watches_cost_no_more_each_than_those_to_few() {
        const MANY: i64 = 300_000;
        let (mut unanswered, start) = (VecDeque::from_iter(0..MANY), Instant::now());
        (0..MANY).for_each(|id| settle(&mut unanswered, id));
        assert!(unanswered.is_empty());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
