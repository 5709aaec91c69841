use std::time::Duration;

use lock_core::backend::{Moment, deadline};

use super::majority::Majority;

/// One attempt to acquire: takes the servers' votes, and says what to do. Synchronous, no I/O.
///
/// First every server is asked for the lock under the same owner id. With a majority of grants the
/// token is the largest that these servers minted, and servers of the majority whose counters are
/// behind it are raised to it: only when a majority of the counters is at least there, and there is
/// still time, is the attempt won. So whichever majority grants next has a server among it whose
/// counter makes its token larger.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    majority: Majority,
    /// The lock is of no use from then on: the TTL, or what of it is relied on, counts from the
    /// first request.
    ends: Moment,
    limit: Duration,
    /// The instant at which those that have not answered are given up.
    give_up: Moment,
    servers: Vec<Server>,
    token: Option<u64>,
    outcome: Option<Outcome>,
}

#[derive(Clone, Debug)]
struct Server {
    vote: Vote,
    /// It has not answered lately: a minority of such servers is not waited for if the others
    /// cannot reach a majority alone.
    silent: bool,
    raise: Raise,
}

/// One server's answer to the request for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    /// Nothing so far.
    Outstanding,
    /// The lock, with this token.
    Granted(u64),
    /// Somebody else's.
    Busy,
    /// Free, but the server keeps the queue, and others are first in it.
    Queued,
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

/// Next step.
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
    /// Too few servers answered.
    OutOfReach,
    /// A majority granted the lock, which has ended meanwhile.
    TooLate,
}

impl Round {
    /// All servers are asked at `sent`; each has the time `limit` to answer, once for the lock and
    /// once for the token.
    pub(crate) fn new(silent: &[bool], sent: Moment, validity: Duration, limit: Duration) -> Self {
        let majority = Majority::of(silent.len());
        let many = silent.iter().filter(|silent| **silent).count() >= majority.blocking();
        let server = |silent: &bool| Server {
            vote: Vote::Outstanding,
            silent: *silent && !many,
            raise: Raise::NotAsked,
        };
        let servers = silent.iter().map(server).collect();
        Self {
            majority,
            ends: deadline(sent, validity),
            limit,
            give_up: sent + limit,
            servers,
            token: None,
            outcome: None,
        }
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

    /// Takes the answer to [`Step::Raise`]; `false` if the server has not the lock any more, `None`
    /// without an answer.
    pub(crate) fn raised(&mut self, server: usize, answer: Option<bool>) {
        let server = &mut self.servers[server];
        server.raise = if answer == Some(true) {
            Raise::Done
        } else {
            Raise::Failed
        };
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
            _ if now >= self.ends && self.granted() >= self.majority.needed() => {
                Some(Outcome::TooLate)
            }
            _ if now >= self.ends => Some(Outcome::OutOfReach),
            None if self.granted() >= self.majority.needed() => return self.settle_token(now),
            None if self.count(|server| server.vote == Vote::Queued) > 0 => {
                Some(Outcome::Busy { split: false })
            }
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
        let token = self
            .servers
            .iter()
            .filter_map(Server::minted)
            .max()
            .unwrap_or_default();
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
        let ask: Vec<_> = (0..self.servers.len())
            .filter(|at| behind(&self.servers[*at]))
            .collect();
        ask.iter()
            .for_each(|at| self.servers[*at].raise = Raise::Asked);
        let open = self.count(|server| {
            server.vote == Vote::Outstanding
                || (server.minted().is_some() && server.raise == Raise::Asked)
        });
        match () {
            () if !ask.is_empty() => Raising::Ask(ask),
            () if done + open < self.majority.needed() => Raising::Failed,
            () => Raising::Wait,
        }
    }

    /// Why there will be no majority, if that is certain.
    fn denied(&self) -> Option<Outcome> {
        let granted = self.granted();
        let open = self.count(|server| server.vote == Vote::Outstanding && !server.silent);
        let silent = self.count(|server| server.vote == Vote::Outstanding && server.silent);
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
mod tests;
