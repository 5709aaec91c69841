use super::*;

const TTL: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_millis(100);

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(1_000 + millis))
}

fn of_three() -> Round {
    Round::new(&[false; 3], at(0), TTL, LIMIT)
}

fn votes(round: &mut Round, votes: [Vote; 3]) {
    votes
        .into_iter()
        .enumerate()
        .for_each(|(server, vote)| round.voted(server, vote));
}

#[test]
fn a_majority_that_agrees_wins_at_once() {
    let mut round = of_three();
    round.voted(2, Vote::Granted(7));
    assert_eq!(round.step(at(1)), Step::Wait(at(100)));
    round.voted(0, Vote::Granted(7));
    assert_eq!(round.step(at(1)), Step::Over(Outcome::Won(7)));
    round.voted(1, Vote::Busy);
    assert_eq!(round.step(at(9)), Step::Over(Outcome::Won(7)), "final");
}

#[test]
fn counters_that_lag_are_raised_before_the_win() {
    let mut round = of_three();
    votes(
        &mut round,
        [Vote::Granted(7), Vote::Granted(9), Vote::Failed],
    );
    assert_eq!(
        round.step(at(1)),
        Step::Raise {
            token: 9,
            servers: vec![0]
        }
    );
    assert_eq!(round.step(at(1)), Step::Wait(at(101)));
    round.raised(0, Some(true));
    assert_eq!(round.step(at(2)), Step::Over(Outcome::Won(9)));
}

#[test]
fn a_raise_without_an_answer_or_without_the_lock_is_no_win() {
    for answer in [None, Some(false)] {
        let mut round = of_three();
        votes(
            &mut round,
            [Vote::Granted(7), Vote::Granted(9), Vote::Failed],
        );
        round.step(at(1));
        round.raised(0, answer);
        assert_eq!(
            round.step(at(2)),
            Step::Over(Outcome::OutOfReach),
            "{answer:?}"
        );
    }
}

#[test]
fn a_late_grant_helps_where_a_raise_failed() {
    let mut round = of_three();
    round.voted(0, Vote::Granted(7));
    round.voted(1, Vote::Granted(9));
    round.step(at(1));
    round.raised(0, None);
    assert_eq!(
        round.step(at(2)),
        Step::Wait(at(101)),
        "the third may still answer"
    );
    round.voted(2, Vote::Granted(3));
    assert_eq!(
        round.step(at(3)),
        Step::Raise {
            token: 9,
            servers: vec![2]
        }
    );
    round.raised(2, Some(true));
    assert_eq!(round.step(at(4)), Step::Over(Outcome::Won(9)));
}

#[test]
fn the_lock_of_others_is_told_from_servers_out_of_reach() {
    use Vote::{Busy, Failed, Granted};
    for (cast, outcome) in [
        ([Busy, Busy, Granted(1)], Outcome::Busy { split: true }),
        ([Busy, Busy, Failed], Outcome::Busy { split: false }),
        ([Granted(1), Busy, Failed], Outcome::Busy { split: true }),
        ([Granted(1), Failed, Failed], Outcome::OutOfReach),
        ([Busy, Failed, Failed], Outcome::OutOfReach),
    ] {
        let mut round = of_three();
        votes(&mut round, cast);
        assert_eq!(round.step(at(1)), Step::Over(outcome), "{cast:?}");
    }
}

#[test]
fn silence_is_given_up_and_a_suspect_is_not_waited_for() {
    let mut round = of_three();
    round.voted(0, Vote::Granted(1));
    round.voted(1, Vote::Busy);
    assert_eq!(round.step(at(99)), Step::Wait(at(100)));
    assert_eq!(
        round.step(at(100)),
        Step::Over(Outcome::Busy { split: true })
    );

    let mut round = Round::new(&[false, false, true], at(0), TTL, LIMIT);
    round.voted(0, Vote::Granted(1));
    round.voted(1, Vote::Busy);
    assert_eq!(round.step(at(1)), Step::Over(Outcome::Busy { split: true }));

    let mut round = Round::new(&[false, true, true], at(0), TTL, LIMIT);
    round.voted(0, Vote::Granted(1));
    assert_eq!(
        round.step(at(1)),
        Step::Wait(at(100)),
        "without a majority of suspects nothing can be done"
    );
}

#[test]
fn a_majority_after_the_validity_is_none() {
    let mut round = Round::new(&[false; 3], at(0), TTL, TTL * 2);
    votes(&mut round, [Vote::Granted(1); 3]);
    assert_eq!(
        round.step(at(10_000 - 102)),
        Step::Over(Outcome::TooLate),
        "1 % and 2 ms before the TTL"
    );
}

#[test]
fn whoever_is_not_first_in_the_queue_gives_way_unless_it_has_won() {
    let mut round = of_three();
    round.voted(1, Vote::Granted(7));
    round.voted(0, Vote::Queued);
    assert_eq!(
        round.step(at(1)),
        Step::Over(Outcome::Busy { split: false })
    );
    let mut round = of_three();
    round.voted(1, Vote::Granted(7));
    round.voted(2, Vote::Granted(7));
    assert_eq!(round.step(at(1)), Step::Over(Outcome::Won(7)));
    round.voted(0, Vote::Queued);
    assert_eq!(round.step(at(2)), Step::Over(Outcome::Won(7)), "final");
}
