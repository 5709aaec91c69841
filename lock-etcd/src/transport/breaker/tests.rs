use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::*;

const REFUSED: fn() -> Result<(), Failure> = || Err(Failure::refused("h:1"));

#[tokio::test(start_paused = true)]
async fn a_member_that_cannot_be_reached_is_asked_by_one_for_all() {
    let breaker = Arc::new(Breaker::default());
    let asked = Arc::new(AtomicUsize::new(0));
    breaker.record("h:1", &REFUSED());
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let breaker = Arc::clone(&breaker);
        let asked = Arc::clone(&asked);
        tasks.spawn(async move {
            while start.elapsed() < Duration::from_secs(10) {
                if breaker.pass().await.is_ok() {
                    asked.fetch_add(1, Relaxed);
                    breaker.record("h:1", &REFUSED());
                }
            }
        });
    }
    tasks.join_all().await;
    assert!(
        (20..=60).contains(&asked.load(Relaxed)),
        "{asked:?} in ten seconds"
    );
}

#[tokio::test(start_paused = true)]
async fn all_pass_once_one_is_answered_or_not_refused() {
    for answered in [true, false] {
        let breaker = Arc::new(Breaker::default());
        breaker.record("h:1", &REFUSED());
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let breaker = Arc::clone(&breaker);
            tasks.spawn(async move {
                breaker.pass().await.unwrap();
                if answered {
                    breaker.record("h:1", &Ok(()));
                }
            });
        }
        tasks.join_all().await;
        let most = if answered {
            FIRST_PAUSE
        } else {
            FIRST_PAUSE + LONGEST_PAUSE
        };
        assert!(
            start.elapsed() <= most + Duration::from_millis(2),
            "{:?}",
            start.elapsed()
        );
    }
}
