use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use etcd_client::ConnectOptions;
use lock_core::backend::Tasks;

use super::*;
use crate::transport::Times;

fn cluster() -> Cluster {
    let endpoints = (1..=3).map(|port| format!("127.0.0.1:{port}")).collect();
    Cluster::new(
        endpoints,
        &ConnectOptions::new(),
        Times {
            request: Duration::from_secs(6),
        },
        &Tasks::current(),
    )
}

/// By how many members requests move on when this has been done.
async fn moved(cluster: &Cluster, act: impl Future) -> usize {
    let first = cluster.current();
    act.await;
    (cluster.current() + 3 - first) % 3
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_without_an_answer_moves_on_if_it_had_time_for_one() {
    for (given, moves) in [(100, 0), (600, 1)] {
        let cluster = cluster();
        let call = cluster.call(|_| pending::<Result<(), EtcdError>>());
        assert_eq!(
            moved(&cluster, timeout(Duration::from_millis(given), call)).await,
            moves,
            "{given} ms"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_with_little_time_is_made_on_every_member_and_moves_to_the_one_that_answers() {
    let cluster = cluster();
    let asked = AtomicUsize::new(0);
    let start = Instant::now();
    let renewal = cluster.call_within(Duration::from_millis(600), |_| {
        let silent = asked.fetch_add(1, Ordering::Relaxed) < 2;
        async move { if silent { pending().await } else { Ok(()) } }
    });
    assert_eq!(moved(&cluster, async { renewal.await.unwrap() }).await, 2);
    assert!(
        start.elapsed() < Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn where_all_are_slow_the_first_one_has_all_the_time_and_nobody_moves() {
    let cluster = cluster();
    let renewal = cluster.call_within(Duration::from_millis(600), |_| async {
        sleep(Duration::from_millis(500)).await;
        Ok(())
    });
    assert_eq!(moved(&cluster, async { renewal.await.unwrap() }).await, 0);
}
