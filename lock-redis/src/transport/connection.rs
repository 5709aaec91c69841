use std::{
    fmt::{self, Debug},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::backend::{Clock, Moment, Tasks};
use redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection};

use crate::{
    error::Failure, keys::Keys, scripts::LockScript, transport::address::Address,
    transport::reconnect::Shared,
};

/// One connection of a [`Link`](super::reconnect::Link): requests over it take effect in the order in
/// which they were sent.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<ConnectionState>,
    /// True if each command is preceded by `ASKING`, for a server that does not keep the key's slot
    /// yet.
    asking: bool,
}

/// The connection itself, and what is known of it and its server.
struct ConnectionState {
    inner: MultiplexedConnection,
    link: Weak<Shared>,
    /// The server, where it may become another one's turn.
    address: Option<Arc<Address>>,
    unanswered: Unanswered,
    /// True if it is being asked for an answer, and nothing else.
    probed: AtomicBool,
    /// The scripts that were run over it.
    scripts: AtomicU8,
}

/// Answers that are owed. Instants are nanoseconds since the clock's origin, or zero.
#[derive(Debug, Default)]
struct Unanswered {
    /// The instant at which the first request was sent that nothing was heard after.
    since: AtomicU64,
    /// The instant at which the last one was sent that got no answer, unless a later one got one:
    /// requests are executed in order.
    missed: AtomicU64,
}

impl Connection {
    pub(crate) fn new(
        inner: MultiplexedConnection,
        link: Weak<Shared>,
        address: Option<Arc<Address>>,
    ) -> Self {
        let unanswered = Unanswered::default();
        let probed = AtomicBool::default();
        let scripts = AtomicU8::default();
        Self {
            shared: Arc::new(ConnectionState {
                inner,
                link,
                address,
                unanswered,
                probed,
                scripts,
            }),
            asking: false,
        }
    }

    /// Sends a command and waits for its answer. It may take effect although this fails or is
    /// dropped.
    pub(crate) async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        if self.asking {
            let mut only = redis::pipe();
            only.add_command(command.clone());
            let answer = self.run_all(&only, 1).await?.pop();
            return answer.unwrap_or_else(|| {
                Err(Failure::unexpected("no answer to a command after ASKING"))
            });
        }
        let sent = self.shared.unanswered.asked();
        let answer = command
            .query_async::<Value>(&mut self.shared.inner.clone())
            .await
            .map_err(Failure::sent);
        self.heard(&answer, sent);
        answer
    }

    /// Runs a script, in full if the server may not know it.
    pub(crate) async fn run_script(
        &self,
        script: &LockScript,
        keys: &Keys,
        args: impl Fn(&mut Cmd),
    ) -> Result<Value, Failure> {
        if self.has_run(script) {
            let mut command = script.by_hash(keys);
            args(&mut command);
            match self.run(&command).await {
                Err(failure) if failure.is_unknown_script() => {}
                answer => return answer,
            }
        }
        let mut command = script.in_full(keys);
        args(&mut command);
        let answer = self.run(&command).await;
        if answer.is_ok() {
            self.ran(script);
        }
        answer
    }

    /// Returns whether the script has been run over this connection: the server then knows it,
    /// unless it was told to forget.
    pub(crate) fn has_run(&self, script: &LockScript) -> bool {
        self.shared.scripts.load(Ordering::Relaxed) & script.bit() != 0
    }

    pub(crate) fn ran(&self, script: &LockScript) {
        self.shared
            .scripts
            .fetch_or(script.bit(), Ordering::Relaxed);
    }

    /// Runs a script for each of several locks, with the arguments for the one at that place; one
    /// answer for each, in order.
    pub(crate) async fn run_script_for_all<'k>(
        &self,
        script: &LockScript,
        all: impl IntoIterator<Item = &'k Keys>,
        args: impl Fn(usize, &mut Cmd),
    ) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let all: Vec<_> = all.into_iter().collect();
        if all.is_empty() {
            return Ok(Vec::new());
        }
        // The first in full is what the others are known by.
        let tell = !self.has_run(script);
        let pipeline = |places: &[usize], in_full: &dyn Fn(usize) -> bool| {
            let mut pipeline = redis::pipe();
            for at in places {
                let mut command = if in_full(*at) {
                    script.in_full(all[*at])
                } else {
                    script.by_hash(all[*at])
                };
                args(*at, &mut command);
                pipeline.add_command(command);
            }
            pipeline
        };
        let places: Vec<_> = (0..all.len()).collect();
        let mut answers = self
            .run_all(&pipeline(&places, &|at| tell && at == 0), all.len())
            .await?;
        if answers.first().is_some_and(Result::is_ok) {
            self.ran(script);
        }
        let unknown: Vec<_> = (0..answers.len())
            .filter(|at| answers[*at].as_ref().is_err_and(Failure::is_unknown_script))
            .collect();
        if !unknown.is_empty() {
            let again = self
                .run_all(&pipeline(&unknown, &|_| true), unknown.len())
                .await?;
            for (at, answer) in unknown.into_iter().zip(again) {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }

    /// Sends several commands at once; one answer for each, in order.
    pub(crate) async fn run_all(
        &self,
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let sent = self.shared.unanswered.asked();
        let mut inner = self.shared.inner.clone();
        let answers = match self.asking {
            // One after each command; those to `ASKING` itself say nothing.
            true => {
                inner
                    .send_packed_commands(&after_asking(commands), 0, count * 2)
                    .await
            }
            false => inner.send_packed_commands(commands, 0, count).await,
        };
        let answers = answers.map_err(Failure::sent);
        self.heard(&answers, sent);
        let (first, step) = if self.asking { (1, 2) } else { (0, 1) };
        let answers = answers?.into_iter().skip(first).step_by(step);
        let answers: Vec<_> = answers
            .map(|answer| answer.extract_error().map_err(Failure::sent))
            .collect();
        if let Some(end) = answers
            .iter()
            .find(|answer| answer.as_ref().is_err_and(Failure::ends_connection))
        {
            self.heard(end, sent);
        }
        Ok(answers)
    }

    /// Takes note of the answer to what was `sent` then.
    fn heard<T>(&self, answer: &Result<T, Failure>, sent: Moment) {
        match answer {
            Err(failure) if failure.ends_connection() => {
                self.shared.unanswered.missed(sent);
                if let Some(link) = self.shared.link.upgrade() {
                    link.broke(self);
                }
            }
            Err(failure) if failure.is_timeout() => self.shared.unanswered.missed(sent),
            _ => self.shared.unanswered.answered(sent),
        }
    }

    /// The same connection, to a server that is getting the key's slot.
    pub(crate) fn asking(self) -> Self {
        Self {
            asking: true,
            ..self
        }
    }

    /// Returns whether requests go to the same server now: what it did before counts there.
    pub(crate) fn leads_to_who_is_in_charge(&self) -> bool {
        self.shared
            .link
            .upgrade()
            .is_some_and(|link| link.is_in_charge(self))
    }

    /// The server, where it may become another one's turn.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.shared.address.as_deref()
    }

    /// Returns whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns whether requests have gone unanswered for so long that the connection has to be
    /// replaced: a socket whose other end vanished gives no error, and a request that its caller
    /// gave up on reports no timeout.
    pub(crate) fn is_silent(&self, limit: Duration) -> bool {
        let Unanswered { since, missed } = &self.shared.unanswered;
        [since, missed]
            .into_iter()
            .filter_map(instant)
            .any(|since| Clock::Suspend.now().saturating_since(since) >= limit)
    }

    /// Returns whether a request got no answer, and none after it did: its server may yet execute
    /// it.
    pub(crate) fn has_unanswered(&self) -> bool {
        instant(&self.shared.unanswered.missed).is_some()
    }

    /// Asks for an answer in the background, so that [`has_unanswered`](Self::owes) gets to know of
    /// one.
    pub(crate) fn probe(&self, tasks: &Tasks) {
        if !self.shared.probed.swap(true, Ordering::Relaxed) {
            let this = self.clone();
            tasks.spawn(async move {
                // Whatever it says has been noted.
                let _ = this.run(&redis::cmd("PING")).await;
                this.shared.probed.store(false, Ordering::Relaxed);
            });
        }
    }
}

fn after_asking(commands: &Pipeline) -> Pipeline {
    let mut all = redis::pipe();
    for command in commands.cmd_iter() {
        all.cmd("ASKING").add_command(command.clone());
    }
    all
}

impl Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.shared.address)
            .field("debt", &self.shared.unanswered)
            .finish_non_exhaustive()
    }
}

impl Unanswered {
    /// A request is about to be sent; returns when.
    fn asked(&self) -> Moment {
        let now = Clock::Suspend.now();
        let _ = self
            .since
            .compare_exchange(0, now.nanos(), Ordering::Relaxed, Ordering::Relaxed);
        now
    }

    /// Returns what was `sent` then has been answered.
    fn answered(&self, sent: Moment) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
        let missed = self.missed.load(Ordering::Relaxed);
        if missed != 0 && missed < sent.nanos() {
            // Unless another one has been missed meanwhile.
            let _ = self
                .missed
                .compare_exchange(missed, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns what was `sent` then got no answer.
    fn missed(&self, sent: Moment) {
        self.missed.fetch_max(sent.nanos(), Ordering::Relaxed);
    }
}

fn instant(word: &AtomicU64) -> Option<Moment> {
    match word.load(Ordering::Relaxed) {
        0 => None,
        nanos => Some(Moment::from_nanos(nanos)),
    }
}

/// Makes a request that may be repeated, and makes it once more if it found its connection broken.
pub(crate) async fn once_more<T, F: Future<Output = Result<T, Failure>>>(
    request: impl Fn() -> F,
) -> Result<T, Failure> {
    match request().await {
        Err(failure) if failure.found_broken() => request().await,
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000_000 + millis))
    }

    #[test]
    fn what_got_no_answer_is_owed_until_something_later_is_answered() {
        let unanswered = Unanswered::default();
        let has_unanswered = || instant(&unanswered.missed);
        unanswered.missed(at(2));
        unanswered.answered(at(1));
        assert_eq!(
            has_unanswered(),
            Some(at(2)),
            "an earlier answer says nothing about it"
        );
        unanswered.missed(at(1));
        unanswered.answered(at(2));
        assert_eq!(
            has_unanswered(),
            Some(at(2)),
            "it was not this one's answer, which would be later"
        );
        unanswered.answered(at(3));
        assert_eq!(has_unanswered(), None);
    }

    #[test]
    fn silence_counts_from_the_first_request_that_nothing_was_heard_after() {
        let unanswered = Unanswered::default();
        let first = unanswered.asked();
        unanswered.asked();
        assert_eq!(instant(&unanswered.since), Some(first));
        unanswered.answered(first);
        assert_eq!(instant(&unanswered.since), None);
    }
}
