use std::time::Duration;

use lock_core::backend::{Moment, deadline};

use super::majority::Majority;

/// One attempt to acquire: takes the servers' votes, and says what to do. Synchronous, no I/O.
///
/// First every server is asked for the lock under the same owner id. With a majority of grants the token is the largest
/// that these servers minted, and servers of the majority whose counters are behind it are raised to it: only when a
/// majority of the counters is at least there, and there is still time, is the attempt won. So whichever majority grants next has
/// a server among it whose counter makes its token larger.
#[derive(Clone, Debug)]
pub(crate) struct Ballot {
    majority: Majority,
    /// The lock is of no use from then on: the TTL, or what of it is relied on, counts from the first request.
    ends: Moment,
    limit: Duration,
    /// When those that have not answered are given up.
    give_up: Moment,
    servers: Vec<Server>,
    token: Option<u64>,
    outcome: Option<Outcome>,
}

#[derive(Clone, Debug)]
struct Server {
    vote: Vote,
    /// It has not answered lately: a minority of such servers is not waited for if the others cannot reach a majority alone.
    suspect: bool,
    raise: Raise,
}

/// What one server said to the request for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    /// Nothing so far.
    Outstanding,
    /// The lock, with this token.
    Granted(u64),
    /// Somebody else's.
    Busy,
    /// It cannot be reached, or cannot serve.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Raise {
    NotAsked,
    Asked,
    Done,
    Failed,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for answers until then.
    Wait(Moment),
    /// Raise the counters of these servers to the token.
    Raise { token: u64, servers: Vec<usize> },
    /// It is over. Unless it is won, it has to be undone on every server that was asked.
    Over(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The lock is held, under this token.
    Won(u64),
    /// Others have it, or as much of it as prevents a majority; whether some servers granted it.
    Busy { split: bool },
    /// Too few servers answered, or too late.
    OutOfReach,
}

impl Ballot {
    /// All servers are asked at `sent`; each has the time `limit` to answer, once for the lock and once for the token.
    pub(crate) fn new(suspects: &[bool], sent: Moment, validity: Duration, limit: Duration) -> Self {
        let majority = Majority::of(suspects.len());
        let many = suspects.iter().filter(|suspect| **suspect).count() >= majority.blocking();
        let server = |suspect: &bool| Server { vote: Vote::Outstanding, suspect: *suspect && !many, raise: Raise::NotAsked };
        let servers = suspects.iter().map(server).collect();
        Self { majority, ends: deadline(sent, validity), limit, give_up: sent + limit, servers, token: None, outcome: None }
    }

    /// Takes the vote of a server.
    pub(crate) fn voted(&mut self, server: usize, vote: Vote) {
        self.servers[server].vote = vote;
        if let (Vote::Granted(minted), Some(token)) = (vote, self.token)
            && minted >= token
        {
            self.servers[server].raise = Raise::Done;
        }
    }

    /// Takes the answer to [`Step::Raise`]; `false` if the server has not the lock any more, `None` without an answer.
    pub(crate) fn raised(&mut self, server: usize, answer: Option<bool>) {
        let server = &mut self.servers[server];
        server.raise = if answer == Some(true) { Raise::Done } else { Raise::Failed };
        if answer == Some(false) {
            server.vote = Vote::Failed;
        }
    }

    /// Nobody will answer any more.
    pub(crate) fn silence(&mut self) {
        for server in &mut self.servers {
            if server.vote == Vote::Outstanding {
                server.vote = Vote::Failed;
            }
            if server.raise == Raise::Asked {
                server.raise = Raise::Failed;
            }
        }
    }

    pub(crate) fn step(&mut self, now: Moment) -> Step {
        if let Some(outcome) = self.outcome {
            return Step::Over(outcome);
        }
        if now >= self.give_up {
            self.silence();
        }
        let outcome = match self.token {
            _ if now >= self.ends => Some(Outcome::OutOfReach),
            None if self.granted() >= self.majority.needed() => return self.settle_token(now),
            None => self.denied(),
            Some(token) => match self.raising() {
                Raising::Done => Some(Outcome::Won(token)),
                Raising::Failed => Some(Outcome::OutOfReach),
                Raising::Ask(servers) => return Step::Raise { token, servers },
                Raising::Wait => None,
            },
        };
        self.outcome = outcome;
        match outcome {
            Some(outcome) => Step::Over(outcome),
            None => Step::Wait(self.give_up.min(self.ends)),
        }
    }

    fn settle_token(&mut self, now: Moment) -> Step {
        let token = self.servers.iter().filter_map(Server::minted).max().unwrap_or_default();
        for server in &mut self.servers {
            if server.minted() == Some(token) {
                server.raise = Raise::Done;
            }
        }
        (self.token, self.give_up) = (Some(token), now + self.limit);
        self.step(now)
    }

    fn raising(&mut self) -> Raising {
        let done = self.count(|server| server.minted().is_some() && server.raise == Raise::Done);
        if done >= self.majority.needed() {
            return Raising::Done;
        }
        let behind = |server: &Server| server.minted().is_some() && server.raise == Raise::NotAsked;
        let ask: Vec<_> = (0..self.servers.len()).filter(|at| behind(&self.servers[*at])).collect();
        ask.iter().for_each(|at| self.servers[*at].raise = Raise::Asked);
        let open = self.count(|server| server.vote == Vote::Outstanding || (server.minted().is_some() && server.raise == Raise::Asked));
        match () {
            () if !ask.is_empty() => Raising::Ask(ask),
            () if done + open < self.majority.needed() => Raising::Failed,
            () => Raising::Wait,
        }
    }

    /// Why there will be no majority, if that is certain.
    fn denied(&self) -> Option<Outcome> {
        let granted = self.granted();
        let open = self.count(|server| server.vote == Vote::Outstanding && !server.suspect);
        let silent = self.count(|server| server.vote == Vote::Outstanding && server.suspect);
        let failed = self.count(|server| server.vote == Vote::Failed);
        let missed = if open == 0 { silent } else { 0 };
        if granted + open + silent - missed >= self.majority.needed() {
            return None;
        }
        Some(match failed + missed >= self.majority.blocking() {
            true => Outcome::OutOfReach,
            false => Outcome::Busy { split: granted > 0 },
        })
    }

    fn granted(&self) -> usize {
        self.count(|server| server.minted().is_some())
    }

    fn count(&self, is: impl Fn(&Server) -> bool) -> usize {
        self.servers.iter().filter(|server| is(server)).count()
    }
}

enum Raising {
    Done,
    Failed,
    Ask(Vec<usize>),
    Wait,
}

impl Server {
    fn minted(&self) -> Option<u64> {
        match self.vote {
            Vote::Granted(token) => Some(token),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000 + millis))
    }

    fn of_three() -> Ballot {
        Ballot::new(&[false; 3], at(0), TTL, LIMIT)
    }

    fn votes(ballot: &mut Ballot, votes: [Vote; 3]) {
        votes.into_iter().enumerate().for_each(|(server, vote)| ballot.voted(server, vote));
    }

    #[test]
    fn a_majority_that_agrees_wins_at_once() {
        let mut ballot = of_three();
        ballot.voted(2, Vote::Granted(7));
        assert_eq!(ballot.step(at(1)), Step::Wait(at(100)));
        ballot.voted(0, Vote::Granted(7));
        assert_eq!(ballot.step(at(1)), Step::Over(Outcome::Won(7)));
        ballot.voted(1, Vote::Busy);
        assert_eq!(ballot.step(at(9)), Step::Over(Outcome::Won(7)), "final");
    }

    #[test]
    fn counters_that_lag_are_raised_before_the_win() {
        let mut ballot = of_three();
        votes(&mut ballot, [Vote::Granted(7), Vote::Granted(9), Vote::Failed]);
        assert_eq!(ballot.step(at(1)), Step::Raise { token: 9, servers: vec![0] });
        assert_eq!(ballot.step(at(1)), Step::Wait(at(101)));
        ballot.raised(0, Some(true));
        assert_eq!(ballot.step(at(2)), Step::Over(Outcome::Won(9)));
    }

    #[test]
    fn a_raise_without_an_answer_or_without_the_lock_is_no_win() {
        for answer in [None, Some(false)] {
            let mut ballot = of_three();
            votes(&mut ballot, [Vote::Granted(7), Vote::Granted(9), Vote::Failed]);
            ballot.step(at(1));
            ballot.raised(0, answer);
            assert_eq!(ballot.step(at(2)), Step::Over(Outcome::OutOfReach), "{answer:?}");
        }
    }

    #[test]
    fn a_late_grant_helps_where_a_raise_failed() {
        let mut ballot = of_three();
        ballot.voted(0, Vote::Granted(7));
        ballot.voted(1, Vote::Granted(9));
        ballot.step(at(1));
        ballot.raised(0, None);
        assert_eq!(ballot.step(at(2)), Step::Wait(at(101)), "the third may still answer");
        ballot.voted(2, Vote::Granted(3));
        assert_eq!(ballot.step(at(3)), Step::Raise { token: 9, servers: vec![2] });
        ballot.raised(2, Some(true));
        assert_eq!(ballot.step(at(4)), Step::Over(Outcome::Won(9)));
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
            let mut ballot = of_three();
            votes(&mut ballot, cast);
            assert_eq!(ballot.step(at(1)), Step::Over(outcome), "{cast:?}");
        }
    }

    #[test]
    fn silence_is_given_up_and_a_suspect_is_not_waited_for() {
        let mut ballot = of_three();
        ballot.voted(0, Vote::Granted(1));
        ballot.voted(1, Vote::Busy);
        assert_eq!(ballot.step(at(99)), Step::Wait(at(100)));
        assert_eq!(ballot.step(at(100)), Step::Over(Outcome::Busy { split: true }));

        let mut ballot = Ballot::new(&[false, false, true], at(0), TTL, LIMIT);
        ballot.voted(0, Vote::Granted(1));
        ballot.voted(1, Vote::Busy);
        assert_eq!(ballot.step(at(1)), Step::Over(Outcome::Busy { split: true }));

        let mut ballot = Ballot::new(&[false, true, true], at(0), TTL, LIMIT);
        ballot.voted(0, Vote::Granted(1));
        assert_eq!(ballot.step(at(1)), Step::Wait(at(100)), "without a majority of suspects nothing can be done");
    }

    #[test]
    fn a_majority_after_the_validity_is_none() {
        let mut ballot = Ballot::new(&[false; 3], at(0), TTL, TTL * 2);
        votes(&mut ballot, [Vote::Granted(1); 3]);
        assert_eq!(ballot.step(at(10_000 - 102)), Step::Over(Outcome::OutOfReach), "1 % and 2 ms before the TTL");
    }
}
