use std::sync::Arc;

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;

fn refused() -> Failure {
    Failure::unsent(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
}

#[tokio::test(start_paused = true)]
async fn one_attempt_at_a_time_finds_out_for_all() {
    let breaker = Arc::new(Breaker::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..100 {
        let breaker = Arc::clone(&breaker);
        all.spawn(async move {
            let mut attempts = 0;
            while start.elapsed() < Duration::from_secs(10) {
                if breaker.pass().await.is_ok() {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    breaker.record::<()>(&Err(refused()));
                }
            }
            attempts
        });
    }
    let attempts: u32 = all.join_all().await.into_iter().sum();
    // The first hundred do not know yet.
    assert!((15..=140).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_is_everybodys_at_once() {
    let breaker = Arc::new(Breaker::default());
    for _ in 0..10 {
        breaker.record::<()>(&Err(refused()));
    }
    breaker.pass().await.unwrap();
    let waiting = {
        let breaker = Arc::clone(&breaker);
        tokio::spawn(async move { breaker.pass().await })
    };
    tokio::task::yield_now().await;
    let start = Instant::now();
    breaker.record(&Ok(()));
    waiting.await.unwrap().unwrap();
    breaker.pass().await.unwrap();
    assert!(breaker.failure().is_none() && start.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_another_server_end_the_pauses() {
    let breaker = Breaker::default();
    let refusal = Failure::unsent(redis::make_extension_error("WRONGPASS".into(), None));
    for end in [&|| breaker.record::<()>(&Err(refusal.clone())), &|| {
        breaker.reset();
    }] as [&dyn Fn(); 2]
    {
        breaker.record::<()>(&Err(refused()));
        assert!(breaker.failure().is_some());
        end();
        let start = Instant::now();
        breaker.pass().await.unwrap();
        assert!(start.elapsed().is_zero());
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Wait(u64),
    Fails,
    /// The connection breaks after this time.
    Breaks(u64),
}

proptest! {
    /// Whatever becomes of attempts and connections, a second has no more than a few attempts once
    /// the failures go on; and nobody waits for longer than is promised.
    #[test]
    fn attempts_are_few(events in prop::collection::vec(prop_oneof![
        (0..2000_u64).prop_map(Event::Wait),
        Just(Event::Fails),
        (0..900_u64).prop_map(Event::Breaks),
    ], 1..200)) {
        let mut state = State::default();
        let mut now = Instant::now();
        let mut attempts = Vec::new();
        for event in events {
            if let Event::Wait(millis) = event {
                now += Duration::from_millis(millis);
                continue;
            }
            while let Some(next) = state.pass(now) {
                prop_assert!(next > now && next - now <= WAIT_MAX);
                now = next;
            }
            attempts.push(now);
            match event {
                Event::Breaks(millis) => {
                    state.succeeded(now);
                    now += Duration::from_millis(millis);
                    state.broke(now);
                }
                _ => state.failed(refused(), now),
            }
        }
        // The first pauses are short.
        for window in attempts.windows(12) {
            prop_assert!(window[11] - window[0] >= Duration::from_secs(2), "{attempts:?}");
        }
    }
}
