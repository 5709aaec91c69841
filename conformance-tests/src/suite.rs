use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard},
};

use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use lock_core::{Capabilities, backend::locked};
use tokio::runtime::Runtime;

use crate::{Case, Harness, Need, Verdict, cases, child, execute::execute, report::Report};

/// An environment variable that, set to `1`, turns every [`Start::Skip`] into a failure: for machines that have the
/// servers, so that nothing is skipped unnoticed.
pub const REQUIRE_SERVERS: &str = "LOCK_TEST_REQUIRE_SERVERS";

/// What the start function hands back when something went wrong; `?` makes it from any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What the start function found.
#[derive(Debug)]
pub enum Start {
    /// A store to run the cases on.
    Ready(Arc<dyn Harness>),
    /// There is none on this machine, and why: all cases are reported as ignored.
    Skip(String),
}

/// Runs the whole suite against a backend: the `main` function of a test target with `harness = false`.
///
/// ```no_run
/// # #[derive(Debug)] struct MyHarness;
/// # impl MyHarness { async fn start(_: Option<String>) -> Result<Self, std::io::Error> { Ok(Self) } }
/// # #[async_trait::async_trait]
/// # impl conformance_tests::Harness for MyHarness {
/// #     fn capabilities(&self) -> lock_core::Capabilities { unimplemented!() }
/// #     async fn connect(&self) -> Result<std::sync::Arc<dyn lock_core::DistributedLock>, lock_core::LockError> { unimplemented!() }
/// # }
/// use conformance_tests::Start;
/// use std::{process::ExitCode, sync::Arc};
///
/// fn main() -> ExitCode {
///     conformance_tests::run("my-store", |child_address| async {
///         Ok(Start::Ready(Arc::new(MyHarness::start(child_address).await?)))
///     })
/// }
/// ```
pub fn run<F, S>(backend: &'static str, start: F) -> ExitCode
where
    F: Fn(Option<String>) -> S + Send + Sync + 'static,
    S: Future<Output = Result<Start, BoxError>> + Send + 'static,
{
    Suite::new(backend, start).run()
}

pub(crate) type StartFn = dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = Result<Start, BoxError>> + Send>> + Send + Sync;

/// The suite for one backend, with what can be said about it before anything is started.
#[must_use = "call `run`"]
pub struct Suite {
    backend: &'static str,
    start: Arc<StartFn>,
    capabilities: Option<Capabilities>,
    without: BTreeMap<Need, String>,
}

impl Suite {
    /// For a backend, under the name that reports show.
    ///
    /// The start function is called at most once per process, when the first case runs, and with `None`. Only in a
    /// child process that a crash case starts it gets the [`Harness::child_address`] of its parent's harness, and must connect
    /// there instead of starting a store.
    pub fn new<F, S>(backend: &'static str, start: F) -> Self
    where
        F: Fn(Option<String>) -> S + Send + Sync + 'static,
        S: Future<Output = Result<Start, BoxError>> + Send + 'static,
    {
        let start: Arc<StartFn> = Arc::new(move |address| Box::pin(start(address)));
        Self { backend, start, capabilities: None, without: BTreeMap::new() }
    }

    /// Lets the runner know before it starts anything which cases do not apply. Without this they are found out when
    /// they run, which `cargo nextest`, that knows only what is *listed* as ignored, shows as a pass.
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Skips the cases that need something which this harness has not, and says why.
    pub fn without(mut self, need: Need, reason: impl Into<String>) -> Self {
        self.without.insert(need, reason.into());
        self
    }

    /// All cases, for every backend.
    pub fn cases() -> impl Iterator<Item = Case> {
        cases::all()
    }

    /// Runs the cases that the command line selects, as `cargo test` and `cargo nextest` give it.
    pub fn run(self) -> ExitCode {
        if let Some(order) = child::Order::from_environment() {
            return child::serve(order, &self.start);
        }
        let mut arguments = Arguments::from_args();
        // Cases wait for the store most of the time.
        arguments.test_threads.get_or_insert(6);
        let shared = Arc::new(Shared { start: Arc::clone(&self.start), started: Mutex::new(None) });
        let report = Arc::new(Report::default());
        let show_ignored = arguments.list || arguments.ignored;
        let trials = Self::cases().map(|case| self.trial(case, &shared, &report, show_ignored)).collect();
        let quiet = arguments.list || arguments.quiet || arguments.exact || matches!(arguments.format, Some(FormatSetting::Json));
        let conclusion = libtest_mimic::run(&arguments, trials);
        shared.end();
        if !quiet {
            println!("{}", report.summary(self.backend));
        }
        conclusion.exit_code()
    }

    fn trial(&self, case: Case, shared: &Arc<Shared>, report: &Arc<Report>, show_ignored: bool) -> Trial {
        let known_skip = self.known_skip(&case);
        let ignored = show_ignored && known_skip.is_some();
        let (shared, report) = (Arc::clone(shared), Arc::clone(report));
        let run = move || {
            let verdict = match known_skip {
                Some(reason) => Ok(Verdict::Skipped(reason)),
                None => shared.run(case),
            };
            report.note(&verdict);
            match verdict {
                Ok(Verdict::Passed) => Ok(Completion::Completed),
                Ok(Verdict::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
                Err(message) => Err(Failed::from(message)),
            }
        };
        // With the flag set libtest-mimic prints no reason, so it is set only where the flag is all that is looked at.
        Trial::ignorable_test(case.full_name(), run).with_ignored_flag(ignored)
    }

    fn known_skip(&self, case: &Case) -> Option<String> {
        let declared = case.needs.iter().find_map(|need| self.without.get(need).cloned());
        declared.or_else(|| self.capabilities.as_ref().and_then(|capabilities| case.inapplicable_to(capabilities)))
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// The harness that the cases of this process share, started by the first that runs.
struct Shared {
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
    fn run(&self, case: Case) -> Result<Verdict, String> {
        let harness = match &*self.started() {
            Some(Ok(started)) => Arc::clone(&started.harness),
            Some(Err(NotStarted::Skip(reason))) => return Ok(Verdict::Skipped(reason.clone())),
            Some(Err(NotStarted::Failed(message))) => return Err(message.clone()),
            None => return Err("the run is over".into()),
        };
        let (paused, start) = (harness.paused_time(), Arc::clone(&self.start));
        let ready = move || {
            if paused { start(None) } else { Box::pin(async move { Ok(Start::Ready(harness)) }) }
        };
        execute(case, paused, Box::new(ready)).map_err(|failure| failure.to_string())
    }

    fn started(&self) -> MutexGuard<'_, Option<Result<Started, NotStarted>>> {
        let mut started = locked(&self.started);
        started.get_or_insert_with(|| start_now(&*self.start));
        started
    }

    /// Ends the store; the harness is dropped inside its runtime.
    fn end(&self) {
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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(|error| failed(&error))?;
    match runtime.block_on(start(None)) {
        Ok(Start::Ready(harness)) => Ok(Started { harness, runtime }),
        Ok(Start::Skip(reason)) if std::env::var(REQUIRE_SERVERS).is_ok_and(|value| value == "1") => {
            Err(NotStarted::Failed(format!("{reason} (and {REQUIRE_SERVERS}=1 allows no skip)")))
        }
        Ok(Start::Skip(reason)) => Err(NotStarted::Skip(reason)),
        Err(error) => Err(failed(&error)),
    }
}
