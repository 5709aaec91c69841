use lock_core::backend::Clock;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    error::Failure,
    quorum::{
        attempt::Voted,
        round::{Outcome, Round, Step},
    },
};

const CLOCK: Clock = Clock::Suspend;

/// Answer of a server in the course of an attempt.
pub(super) enum Event {
    Voted(Voted),
    Raised(usize, Option<bool>),
}

/// Takes the servers' answers until the round is decided; `raise` sends a server the token.
pub(super) async fn decide(
    mut round: Round,
    events: &mut UnboundedReceiver<Event>,
    raise: impl Fn(usize, u64),
) -> (Outcome, Vec<(usize, Failure)>) {
    let mut failures = Vec::new();
    let mut take = |round: &mut Round, event| match event {
        Event::Voted(Voted {
            server,
            vote,
            failure,
        }) => {
            round.voted(server, vote);
            failures.extend(failure.map(|failure| (server, failure)));
        }
        Event::Raised(server, answer) => round.raised(server, answer),
    };
    loop {
        // Votes that have come count, also if the time was up before this task went on.
        while let Ok(event) = events.try_recv() {
            take(&mut round, event);
        }
        match round.step(CLOCK.now()) {
            Step::Over(outcome) => return (outcome, failures),
            Step::Raise { token, servers } => {
                servers.into_iter().for_each(|server| raise(server, token));
            }
            Step::Wait(until) => tokio::select! {
                () = CLOCK.sleep_until(until) => {}
                Some(event) = events.recv() => take(&mut round, event),
            },
        }
    }
}

#[cfg(test)]
mod tests;
