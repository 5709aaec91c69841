use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::runtime::Runtime;

use async_trait::async_trait;

use super::*;
use crate::backend::Leftover;
use crate::backend::Tasks;

/// Time that a loaded machine adds.
const SLACK: Duration = Duration::from_secs(1);

/// Done by the attempt of this number; those before never end.
struct Stubborn {
    begun: AtomicUsize,
    done_by: usize,
}

impl Stubborn {
    fn new(done_by: usize) -> Arc<Self> {
        Arc::new(Self {
            begun: AtomicUsize::new(0),
            done_by,
        })
    }

    fn begun(&self) -> usize {
        self.begun.load(SeqCst)
    }
}

#[async_trait]
impl Removal for Stubborn {
    async fn remove(&self) {
        if self.begun.fetch_add(1, SeqCst) + 1 < self.done_by {
            std::future::pending::<()>().await;
        }
    }

    fn left(&self) -> Leftover {
        Leftover {
            what: "a test's".into(),
            ends_in: Duration::ZERO,
        }
    }
}

fn tasks(options: RuntimeOptions) -> (Runtime, Tasks) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = runtime.block_on(async { Tasks::start(options).unwrap() });
    (runtime, tasks)
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

#[test]
fn what_a_runtime_leaves_undone_is_begun_again_before_it_has_ended() {
    let (runtime, tasks) = tasks(RuntimeOptions::default());
    let unpolled = Stubborn::new(1);
    let stuck = Stubborn::new(2);
    tasks.remove(Arc::clone(&stuck) as _);
    runtime.block_on(async {
        while stuck.begun() == 0 {
            tokio::task::yield_now().await;
        }
    });
    tasks.remove(Arc::clone(&unpolled) as _);
    assert_eq!((unpolled.begun(), stuck.begun()), (0, 1));
    drop(runtime);
    assert_eq!((unpolled.begun(), stuck.begun()), (1, 2));
    let late = Stubborn::new(1);
    tasks.remove(Arc::clone(&late) as _);
    assert_eq!(late.begun(), 1);
}

#[test]
fn all_waits_of_a_client_together_are_bounded() {
    let (runtime, tasks) = tasks(RuntimeOptions::default());
    let remove = || (0..3).for_each(|_| tasks.remove(Stubborn::new(usize::MAX)));
    remove();
    let took = timed(|| drop(runtime));
    assert!((EXIT_LIMIT..EXIT_LIMIT + SLACK).contains(&took), "{took:?}");
    let took = timed(remove);
    assert!(took < EXIT_LIMIT / 2, "{took:?}");
}

#[test]
fn nothing_is_waited_for_where_that_is_off() {
    let (runtime, tasks) = tasks(RuntimeOptions {
        release_at_exit: false,
        ..RuntimeOptions::default()
    });
    let removal = Stubborn::new(1);
    tasks.remove(Arc::clone(&removal) as _);
    drop(runtime);
    assert_eq!((removal.begun(), Arc::strong_count(&removal)), (0, 1));
}

#[test]
fn a_thread_ends_with_its_client() {
    let (runtime, tasks) = tasks(RuntimeOptions {
        background_thread: true,
        ..RuntimeOptions::default()
    });
    let held = Arc::new(());
    let there = Arc::clone(&held);
    tasks.spawn(async move {
        let _there = there;
        std::future::pending::<()>().await;
    });
    drop(runtime);
    assert_eq!(
        Arc::strong_count(&held),
        2,
        "the runtime that connected is not where it runs"
    );
    drop(tasks);
    let start = Instant::now();
    while Arc::strong_count(&held) > 1 {
        assert!(start.elapsed() < SLACK * 10, "its thread goes on");
        thread::yield_now();
    }
}
