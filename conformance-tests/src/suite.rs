use std::{
    borrow::Cow,
    collections::BTreeMap,
    error::Error,
    ffi::OsString,
    fmt,
    future::Future,
    mem,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use lock_core::{Capabilities, backend::locked};

use crate::{
    Case, CaseResult, Claim, Harness, Judgement, Need, Verdict, cases, child, seed,
    started::{Shared, StartFn},
    verdict::is_needed,
};

/// An environment variable that, set to `1`, turns every [`Start::Skip`] into a failure: for
/// machines that have the servers, so that nothing is skipped unnoticed.
pub const REQUIRE_SERVERS: &str = "LOCK_TEST_REQUIRE_SERVERS";

/// Error that the start function returns when something goes wrong; `?` makes it from any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Result of the start function.
#[derive(Debug)]
#[non_exhaustive]
pub enum Start {
    /// A store to run the cases on.
    Ready(Arc<dyn Harness>),
    /// No store can be had on this machine, and why: all cases are reported as ignored.
    Skip(String),
}

/// Runs the whole suite against a backend: the `main` function of a test target with `harness =
/// false`.
///
/// ```no_run
/// # #[derive(Debug)] struct MyHarness;
/// # impl MyHarness { async fn start(_: Option<String>) -> Result<Self, std::io::Error> { Ok(Self) } }
/// # #[async_trait::async_trait]
/// # impl lock_conformance::Harness for MyHarness {
/// #     fn capabilities(&self) -> lock_core::Capabilities { unimplemented!() }
/// #     async fn connect(&self) -> Result<std::sync::Arc<dyn lock_core::DistributedLock>, lock_core::LockError> { unimplemented!() }
/// # }
/// use lock_conformance::Start;
/// use std::{process::ExitCode, sync::Arc};
///
/// fn main() -> ExitCode {
///     lock_conformance::run("my-store", |child_address| async {
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

/// The suite for one backend, with what is known about it before anything is started.
#[must_use = "call `run`"]
pub struct Suite {
    backend: Cow<'static, str>,
    pub(crate) start: Arc<StartFn>,
    capabilities: Option<Capabilities>,
    without: BTreeMap<Need, String>,
    claims: Vec<Claim>,
}

impl Suite {
    /// Makes the suite for a backend; reports show it under this name.
    ///
    /// The start function is called at most once per process, with `None`, when the first case
    /// runs. Only in a child process that a crash case starts does it get the
    /// [`Harness::child_address`] of its parent's harness; it must then connect there instead of
    /// starting a store.
    pub fn new<F, S>(backend: impl Into<Cow<'static, str>>, start: F) -> Self
    where
        F: Fn(Option<String>) -> S + Send + Sync + 'static,
        S: Future<Output = Result<Start, BoxError>> + Send + 'static,
    {
        let start: Arc<StartFn> = Arc::new(move |address| Box::pin(start(address)));
        Self {
            backend: backend.into(),
            start,
            capabilities: None,
            without: BTreeMap::new(),
            claims: Vec::new(),
        }
    }

    /// Tells the runner which cases do not apply before anything is started. Without this they are
    /// found out only when they run, and `cargo nextest`, which knows only what is *listed* as
    /// ignored, then shows them as passed.
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Skips the cases that need something this harness lacks, and says why.
    pub fn without(mut self, need: Need, reason: impl Into<String>) -> Self {
        self.without.insert(need, reason.into());
        self
    }

    /// Claims a [`Level`](crate::Level) or a [`Badge`](crate::Badge), which the run must then prove.
    ///
    /// A claimed level includes those below it. With it, the badges that the backend's capabilities
    /// declare are claimed too; [`Badge::Clean`](crate::Badge::Clean) must be claimed here. A case
    /// that a claim needs and that could not be checked leaves the claim unproven.
    pub fn claims(mut self, claim: impl Into<Claim>) -> Self {
        self.claims.push(claim.into());
        self
    }

    /// Sets the seed of the cases' random choices, which all suites of this process share; `None`
    /// leaves it to [`SEED`](crate::SEED).
    pub fn with_seed(self, seed: Option<u64>) -> Self {
        if let Some(seed) = seed {
            seed::set(seed);
        }
        self
    }

    /// Lists all cases, for every backend.
    pub fn cases() -> impl Iterator<Item = Case> {
        cases::all()
    }

    /// Runs the cases that the command line selects, in the syntax of `cargo test` and `cargo
    /// nextest`, and judges the claims if all cases were selected. `--report <FILE>` writes the
    /// verdict and all results as JSON.
    ///
    /// | exit code | meaning |
    /// |---|---|
    /// | 0 | every claim is proven, or nothing is claimed and no case failed; or there was no store to start |
    /// | 1 | a case has found a violation |
    /// | 2 | a claim is unproven: a case that it needs could not be checked |
    /// | 3 | the store could not be started, or the report could not be written |
    #[must_use = "the exit code is the verdict"]
    pub fn run(self) -> ExitCode {
        if let Some(code) = self.serve_child() {
            return code;
        }
        let (arguments, report_to) = arguments();
        let shared = Arc::new(Shared::new(Arc::clone(&self.start)));
        let results = Arc::new(Mutex::default());
        let lists = arguments.list || arguments.ignored;
        seed::choose();
        let trials = Self::cases()
            .map(|case| self.trial(case, &shared, &results, lists))
            .collect();
        let conclusion = libtest_mimic::run(&arguments, trials);
        let results = mem::take(&mut *locked(&results));
        let mut judgement = self.judgement(&shared, results);
        if conclusion.num_filtered_out > 0 || arguments.ignored {
            judgement = judgement.of_a_part();
        }
        let code = conclude(&arguments, &judgement, report_to);
        shared.end();
        ExitCode::from(code)
    }

    /// Does what a case of another process asks for, if this process was started by one. A program
    /// that calls [`judge`](Self::judge) calls this before anything else, and ends with the code.
    #[must_use]
    pub fn serve_child(&self) -> Option<ExitCode> {
        let order = child::Order::from_environment()?;
        Some(child::serve(order, &self.start))
    }

    pub(crate) fn judgement(&self, shared: &Shared, results: Vec<CaseResult>) -> Judgement {
        let declared = shared.capabilities().or_else(|| self.capabilities.clone());
        Judgement::new(
            &self.backend,
            seed::choose(),
            &self.claims,
            declared.as_ref(),
            shared.store(),
            results,
        )
    }

    fn trial(
        &self,
        case: Case,
        shared: &Arc<Shared>,
        results: &Arc<Mutex<Vec<CaseResult>>>,
        lists: bool,
    ) -> Trial {
        let known = self.known_verdict(&case);
        // A runner that only looks at the list must not pass over what a claim needs.
        let is_excused = !matches!(known, Some(Verdict::Lacking(..)))
            || !is_needed(&case, &self.claims, self.capabilities.as_ref());
        let ignored = lists && known.is_some() && is_excused;
        let shared = Arc::clone(shared);
        let results = Arc::clone(results);
        let run = move || {
            let result = shared.result(case, known);
            locked(&results).push(result.clone());
            match result.outcome.map_err(Failed::from)? {
                Verdict::Passed => Ok(Completion::Completed),
                Verdict::NotApplicable(reason)
                | Verdict::Lacking(_, reason)
                | Verdict::NotRun(reason) => Ok(Completion::ignored_with(reason)),
            }
        };
        // libtest-mimic prints no reason for a case with this flag, so it is set only where nothing
        // but the flag is looked at.
        Trial::ignorable_test(case.full_name(), run).with_ignored_flag(ignored)
    }

    pub(crate) fn known_verdict(&self, case: &Case) -> Option<Verdict> {
        let inapplicable = self
            .capabilities
            .as_ref()
            .and_then(|capabilities| case.inapplicable_to(capabilities));
        if let Some(reason) = inapplicable {
            return Some(Verdict::NotApplicable(reason));
        }
        let absent = |need: &Need| Some((*need, self.without.get(need)?.clone()));
        let (need, reason) = case.needs.iter().find_map(absent)?;
        Some(if need.is_of_the_store() {
            Verdict::NotApplicable(reason)
        } else {
            Verdict::Lacking(need, reason)
        })
    }
}

/// Reports the run; returns the exit code.
fn conclude(arguments: &Arguments, judgement: &Judgement, report_to: Option<PathBuf>) -> u8 {
    if arguments.list {
        return 0;
    }
    let is_quiet =
        arguments.quiet || arguments.exact || matches!(arguments.format, Some(FormatSetting::Json));
    let code = judgement.code();
    match is_quiet {
        false => println!("{}", judgement.summary()),
        true if code != 0 => eprintln!("{}", judgement.summary()),
        true => {}
    }
    if let Some(path) = report_to
        && let Err(error) = judgement.write(&path)
    {
        eprintln!("cannot write the report {}: {error}", path.display());
        return 3;
    }
    code
}

/// Reads the command line; `--report` is ours, the rest is the runner's.
fn arguments() -> (Arguments, Option<PathBuf>) {
    let mut given: Vec<OsString> = std::env::args_os().collect();
    let report = given
        .iter()
        .position(|argument| argument == "--report")
        .filter(|at| at + 1 < given.len());
    let report = report.map(|at| {
        given.remove(at);
        given.remove(at).into()
    });
    let mut arguments = Arguments::from_iter(given);
    // Cases wait for the store most of the time.
    arguments.test_threads.get_or_insert(6);
    (arguments, report)
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}
