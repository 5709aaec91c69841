use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use lock_core::{Capabilities, backend::locked};
use tokio::runtime::Runtime;

use crate::{
    Case, CaseResult, Harness, REQUIRE_SERVERS, Start, Verdict, execute::execute, judgement::Store,
    suite::BoxError,
};

pub(crate) type StartFn = dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = Result<Start, BoxError>> + Send>>
    + Send
    + Sync;

/// The harness that the cases of this process share, started by the first one that runs.
pub(crate) struct Shared {
    start: Arc<StartFn>,
    started: Mutex<Option<Result<Started, NotStarted>>>,
}

struct Started {
    harness: Arc<dyn Harness>,
    runtime: Runtime,
}

#[derive(Clone)]
enum NotStarted {
    Skip(String),
    Failed(String),
}

impl Shared {
    pub(crate) fn new(start: Arc<StartFn>) -> Self {
        Self {
            start,
            started: Mutex::new(None),
        }
    }

    /// The capabilities of the harness that the cases ran on.
    pub(crate) fn capabilities(&self) -> Option<Capabilities> {
        match &*locked(&self.started) {
            Some(Ok(started)) => Some(started.harness.capabilities()),
            _ => None,
        }
    }

    pub(crate) fn store(&self) -> Store {
        match &*locked(&self.started) {
            Some(Err(NotStarted::Failed(_))) => Store::Failed,
            Some(Err(NotStarted::Skip(_))) => Store::Skipped,
            Some(Ok(_)) | None => Store::Ready,
        }
    }

    /// Runs a case, unless its verdict is known.
    pub(crate) fn result(&self, case: Case, known: Option<Verdict>) -> CaseResult {
        let start = Instant::now();
        let outcome = match known {
            Some(verdict) => Ok(verdict),
            None => self.run(case),
        };
        CaseResult::new(case, outcome, start.elapsed())
    }

    fn run(&self, case: Case) -> Result<Verdict, String> {
        let harness = match &*self.started() {
            Some(Ok(started)) => Arc::clone(&started.harness),
            Some(Err(NotStarted::Skip(reason))) => return Ok(Verdict::NotRun(reason.clone())),
            Some(Err(NotStarted::Failed(message))) => return Err(message.clone()),
            None => return Err("the run is over".into()),
        };
        let paused = harness.paused_time();
        let start = Arc::clone(&self.start);
        let ready = move || {
            if paused {
                start(None)
            } else {
                Box::pin(async move { Ok(Start::Ready(harness)) })
            }
        };
        execute(case, paused, Box::new(ready)).map_err(|failure| failure.to_string())
    }

    fn started(&self) -> MutexGuard<'_, Option<Result<Started, NotStarted>>> {
        let mut started = locked(&self.started);
        started.get_or_insert_with(|| start_now(&*self.start));
        started
    }

    /// Ends the store; the harness is dropped inside its own runtime.
    pub(crate) fn end(&self) {
        let started = locked(&self.started).take();
        if let Some(Ok(Started { harness, runtime })) = started {
            let entered = runtime.enter();
            drop(harness);
            drop(entered);
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }
}

fn start_now(start: &StartFn) -> Result<Started, NotStarted> {
    let failed = |error: &dyn fmt::Display| NotStarted::Failed(format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    match runtime.block_on(start(None)) {
        Ok(Start::Ready(harness)) => Ok(Started { harness, runtime }),
        Ok(Start::Skip(reason))
            if std::env::var(REQUIRE_SERVERS).is_ok_and(|value| value == "1") =>
        {
            Err(NotStarted::Failed(format!(
                "{reason} (and {REQUIRE_SERVERS}=1 allows no skip)"
            )))
        }
        Ok(Start::Skip(reason)) => Err(NotStarted::Skip(reason)),
        Err(error) => Err(failed(&error)),
    }
}
