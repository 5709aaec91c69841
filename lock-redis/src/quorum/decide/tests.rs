use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::quorum::round::Vote;

const TTL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn answers_that_came_during_a_stall_count() {
    let (sender, mut events) = mpsc::unbounded_channel();
    for (server, token) in [7, 9].into_iter().enumerate() {
        sender
            .send(Event::Voted(Voted {
                server,
                vote: Vote::Granted(token),
                failure: None,
            }))
            .unwrap();
    }
    // The time for the votes is up from the beginning, and that for the raise as soon as it has
    // begun.
    let round = Round::new(&[false; 3], CLOCK.now(), TTL, Duration::ZERO);
    let raise = |server, token| {
        assert_eq!((server, token), (0, 9));
        sender.send(Event::Raised(server, Some(true))).unwrap();
    };
    let (outcome, failures) = decide(round, &mut events, raise).await;
    assert!(
        outcome == Outcome::Won(9) && failures.is_empty(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn grants_that_are_taken_after_the_lock_has_ended_are_no_silence_of_the_servers() {
    let (sender, mut events) = mpsc::unbounded_channel();
    for server in 0..2 {
        sender
            .send(Event::Voted(Voted {
                server,
                vote: Vote::Granted(7),
                failure: None,
            }))
            .unwrap();
    }
    let round = Round::new(&[false; 3], CLOCK.now(), Duration::ZERO, TTL);
    let (outcome, _) = decide(round, &mut events, |_, _| unreachable!("too late")).await;
    assert_eq!(outcome, Outcome::TooLate);
}

#[tokio::test]
async fn without_answers_the_time_is_up() {
    let (sender, mut events) = mpsc::unbounded_channel();
    sender
        .send(Event::Voted(Voted {
            server: 2,
            vote: Vote::Granted(7),
            failure: None,
        }))
        .unwrap();
    let round = Round::new(&[false; 3], CLOCK.now(), TTL, Duration::ZERO);
    let (outcome, _) = decide(round, &mut events, |_, _| unreachable!("no majority")).await;
    assert_eq!(outcome, Outcome::OutOfReach);
}
