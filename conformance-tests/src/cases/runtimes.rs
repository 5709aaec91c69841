//! Without a runtime, the caller's or the client's own, no operation panics or hangs: it says what
//! is missing. Locks that were held are released all the same.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::join_all};
use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, LockError, LockGuard, LockName};
use tokio::runtime::{Builder, Runtime};

use crate::{
    case::{Outcome, Stop, cases, ensure, fail},
    context::{Client, Ctx, within},
    waiter::take,
};

cases! { "runtimes";
    without_a_runtime_every_operation_says_so [];
    without_a_runtime_guards_are_let_go [];
    a_client_whose_runtime_has_ended_says_so [];
    a_client_whose_runtime_stands_still_says_so [];
    guards_are_let_go_after_their_runtime_has_ended [];
}

/// Bound for anything that needs no answer from the store, on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Longer than any request takes.
const BOUND: Duration = Duration::from_secs(15);

async fn without_a_runtime_every_operation_says_so(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("held")).await?;
    let names = names(&ctx);
    let told = apart(move || {
        let mut told = block_on(each_operation(&client, &names));
        told.push(block_on(timed("shutdown", client.shutdown())));
        told
    });
    let told = told.await?;
    says_what_is_missing(&told, AT_ONCE)?;
    for Told {
        operation, outcome, ..
    } in told
    {
        ensure!(
            outcome.is_err(),
            "{operation} does without a runtime, which other backends need"
        );
    }
    Ok(guard.release().await?)
}

async fn without_a_runtime_guards_are_let_go(ctx: Ctx) -> Outcome {
    let (client, other) = ctx.connect_two().await?;
    let released = ctx.name("released");
    let dropped = ctx.name("dropped");
    let to_release = take(&client, &released).await?;
    let to_drop = take(&client, &dropped).await?;
    let told = apart(move || {
        drop(to_drop);
        block_on(timed("release", to_release.release()))
    });
    says_what_is_missing(&[told.await?], AT_ONCE)?;
    is_free(&other, &released).await?;
    is_free(&other, &dropped).await
}

async fn a_client_whose_runtime_has_ended_says_so(ctx: Ctx) -> Outcome {
    for flavour in FLAVOURS {
        let (client, _guard) = made_on_a_runtime_that_ended(&ctx, flavour).await?;
        says_what_is_missing(&each_operation(&client, &names(&ctx)).await, AT_ONCE)?;
        // It releases what is held, on a thread that knows of no paused clock.
        let Told { outcome, took, .. } = timed("shutdown", client.shutdown()).await;
        ensure!(
            took < AT_ONCE,
            "shutdown took {took:?}, and ended with {outcome:?}"
        );
    }
    Ok(())
}

async fn a_client_whose_runtime_stands_still_says_so(ctx: Ctx) -> Outcome {
    let making = ctx.clone();
    let made = apart(move || {
        let runtime = Flavour::CurrentThread.runtime()?;
        Ok::<_, Stop>((made_on(&runtime, &making)?, runtime))
    });
    let ((client, guard), runtime) = made.await??;
    let told = within(BOUND * 3, async {
        let mut told = each_operation(&client, &names(&ctx)).await;
        told.push(timed("release", guard.release()).await);
        told.push(timed("shutdown", client.shutdown()).await);
        told
    });
    let told = told.await;
    drop(client);
    // Dropped on a thread that may block.
    apart(move || drop(runtime)).await?;
    let Some(told) = told else {
        fail!("an operation waits for ever for a runtime that stands still")
    };
    says_what_is_missing(&told, BOUND)
}

async fn guards_are_let_go_after_their_runtime_has_ended(ctx: Ctx) -> Outcome {
    let other = ctx.connect().await?;
    for flavour in FLAVOURS {
        let (_client, guard) = made_on_a_runtime_that_ended(&ctx, flavour).await?;
        apart(move || drop(guard)).await?;
        is_free(&other, &ctx.name("held")).await?;
        let (_client, guard) = made_on_a_runtime_that_ended(&ctx, flavour).await?;
        guard.release().await?;
        is_free(&other, &ctx.name("held")).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Flavour {
    CurrentThread,
    MultiThread,
}

const FLAVOURS: [Flavour; 2] = [Flavour::CurrentThread, Flavour::MultiThread];

impl Flavour {
    fn runtime(self) -> Result<Runtime, Stop> {
        let runtime = match self {
            Self::CurrentThread => Builder::new_current_thread().enable_all().build(),
            Self::MultiThread => Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
        };
        runtime.map_err(|error: io::Error| Stop::Fail(format!("no runtime: {error}")))
    }
}

/// A client that was made on a runtime, and its guard of the name `held`.
type Made = (Client, LockGuard);

fn made_on(runtime: &Runtime, ctx: &Ctx) -> Result<Made, Stop> {
    runtime.block_on(async {
        let client = ctx.connect().await?;
        let guard = take(&client, &ctx.name("held")).await?;
        Ok((client, guard))
    })
}

async fn made_on_a_runtime_that_ended(ctx: &Ctx, flavour: Flavour) -> Result<Made, Stop> {
    let making = ctx.clone();
    apart(move || made_on(&flavour.runtime()?, &making)).await?
}

/// The outcome of one operation, and the time that it took.
struct Told {
    operation: &'static str,
    outcome: Result<(), LockError>,
    took: Duration,
}

async fn timed<T>(
    operation: &'static str,
    outcome: impl Future<Output = Result<T, LockError>>,
) -> Told {
    let start = Instant::now();
    let outcome = outcome.await.map(drop);
    Told {
        operation,
        outcome,
        took: start.elapsed(),
    }
}

/// A name for each operation.
fn names(ctx: &Ctx) -> [LockName; 4] {
    ["acquire", "try-acquire", "inspect", "force-release"].map(|operation| ctx.name(operation))
}

/// Runs all operations at once.
async fn each_operation(client: &Client, names: &[LockName; 4]) -> Vec<Told> {
    let [acquire, try_acquire, inspect, force_release] = names;
    join_all([
        timed("acquire", client.acquire(acquire)).boxed(),
        timed("try-acquire", client.try_acquire(try_acquire)).boxed(),
        timed("inspect", client.inspect(inspect)).boxed(),
        timed("force-release", client.force_release(force_release)).boxed(),
    ])
    .await
}

/// Checks that whatever fails does so in time and for want of a runtime, or because the backend
/// does not offer it.
fn says_what_is_missing(told: &[Told], bound: Duration) -> Outcome {
    for Told {
        operation,
        outcome,
        took,
    } in told
    {
        ensure!(
            took < &bound,
            "{operation} took {took:?}, and ended with {outcome:?}"
        );
        let Err(error) = outcome else { continue };
        let told = error.kind() == ErrorKind::Unavailable && error.to_string().contains("runtime");
        ensure!(
            told || error.kind() == ErrorKind::Unsupported,
            "{operation} does not say that a runtime is missing, but {error:?}"
        );
    }
    Ok(())
}

async fn is_free(client: &Client, name: &LockName) -> Outcome {
    Ok(client
        .acquire_with(name, AcquireOptions::new().with_timeout(AT_ONCE))
        .await?
        .release()
        .await?)
}

/// Returns the result of the work on a thread without a runtime.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    let (done, outcome) = mpsc::channel();
    let thread = thread::spawn(move || drop(done.send(work())));
    let outcome = tokio::task::spawn_blocking(move || outcome.recv_timeout(BOUND));
    match outcome.await {
        Ok(Ok(outcome)) => Ok(outcome),
        _ if thread.is_finished() => {
            Err(Stop::Fail(format!("panicked: {:?}", thread.join().err())))
        }
        _ => Err(Stop::Fail(format!("did not end within {BOUND:?}"))),
    }
}

/// Runs a future on this thread, as an executor other than tokio's does.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}
