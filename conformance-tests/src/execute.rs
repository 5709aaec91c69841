use std::{any::Any, future::Future, pin::Pin, sync::Arc, sync::mpsc, thread, time::Duration};

use crate::{
    Case, Failure, Harness, Start, Suite, Verdict,
    case::{Outcome, Stop},
    context::Ctx,
    suite::BoxError,
};

/// Time limit of a case; one that would hang fails instead.
const TIME_LIMIT: Duration = Duration::from_secs(90);
/// Time limit under a paused clock, which runs ahead whenever nothing else is left to do.
const PAUSED_TIME_LIMIT: Duration = Duration::from_secs(3600);
/// Time beyond the limit for which the thread of a case may block before it is given up.
const GRACE: Duration = Duration::from_secs(15);

pub(crate) type Provide =
    Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<Start, BoxError>> + Send>> + Send>;

/// Runs one case, by its full name, on a harness. The case has a runtime and a thread of its own,
/// and a time limit.
///
/// This lets a backend's author repeat a single case, and prove that a broken backend is caught.
///
/// # Errors
///
/// The case's finding, or a note that there is no case of that name.
pub fn run_case(harness: Arc<dyn Harness>, name: &str) -> Result<Verdict, Failure> {
    let Some(case) = Suite::cases().find(|case| case.full_name() == name) else {
        return Err(Failure(format!("there is no case `{name}`")));
    };
    let paused = harness.paused_time();
    execute(
        case,
        paused,
        Box::new(move || Box::pin(async move { Ok(Start::Ready(harness)) })),
    )
}

pub(crate) fn execute(case: Case, paused: bool, provide: Provide) -> Result<Verdict, Failure> {
    let (done, outcome) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name(case.full_name())
        .spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run_to_end(case, paused, provide)
            }));
            let _ =
                done.send(outcome.unwrap_or_else(|panic| {
                    Err(Stop::Fail(format!("panicked: {}", text(&*panic))))
                }));
        });
    if let Err(error) = spawned {
        return Err(Failure(format!("no thread for the case: {error}")));
    }
    match outcome.recv_timeout(TIME_LIMIT + GRACE) {
        Ok(Ok(())) => Ok(Verdict::Passed),
        Ok(Err(Stop::Lacks(need, reason))) => Ok(Verdict::Lacking(need, reason)),
        Ok(Err(Stop::NotApplicable(reason))) => Ok(Verdict::NotApplicable(reason)),
        Ok(Err(Stop::NotRun(reason))) => Ok(Verdict::NotRun(reason)),
        Ok(Err(Stop::Fail(message))) => Err(Failure(message)),
        Err(_) => Err(Failure(format!(
            "blocked its thread for over {:?}",
            TIME_LIMIT + GRACE
        ))),
    }
}

fn run_to_end(case: Case, paused: bool, provide: Provide) -> Outcome {
    let runtime = if paused {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
    };
    let runtime =
        runtime.map_err(|error| Stop::Fail(format!("no runtime for the case: {error}")))?;
    let limit = if paused {
        PAUSED_TIME_LIMIT
    } else {
        TIME_LIMIT
    };
    let outcome = runtime.block_on(async {
        let ctx = match provide().await {
            Ok(Start::Ready(harness)) => Ctx::new(harness),
            Ok(Start::Skip(reason)) => return Err(Stop::NotRun(reason)),
            Err(error) => return Err(Stop::Fail(format!("cannot start: {error}"))),
        };
        if let Some(reason) = case.inapplicable_to(ctx.capabilities()) {
            return Err(Stop::NotApplicable(reason));
        }
        let outcome = match tokio::time::timeout(limit, (case.run)(ctx.clone())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Stop::Fail(format!("did not end within {limit:?}"))),
        };
        ctx.tidy_up().await;
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
