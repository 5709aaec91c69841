use std::time::Duration;

use super::{Terms, Violation, returns::standstills};
use crate::{
    event::How,
    history::{History, Span, merged, overlaps, rest},
};

/// Time for which a lock may be free while there are waiters: as long as it takes on a loaded
/// machine to give up on a silent member, first for the client that releases and then for the one
/// that waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// The store looks for expired leases only from time to time, and may elect in between.
const EXPIRY: Duration = Duration::from_secs(3);
/// Time after an election within which it is noticed.
const NOTICED: Duration = Duration::from_secs(2);

/// A lock is not free for long while somebody waits, unless an entry of a stopped or dead process
/// may be in the way. Where waiters are told, and all has been well for a while, it is not even
/// free for so long that the end of a lease could have told them.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    not_free_for(
        PATIENCE,
        |register| excuses(history, register),
        history,
        terms,
    )?;
    if terms.prompt {
        not_free_for(
            terms.ttls.usual() / 2,
            |register| history.unrest(register),
            history,
            terms,
        )
    } else {
        Ok(())
    }
}

fn not_free_for(
    wait_limit: Duration,
    excuses: impl Fn(u32) -> Vec<Span>,
    history: &History,
    terms: &Terms,
) -> Result<(), Violation> {
    for (register, grants) in history.by_register() {
        let excuses = excuses(register);
        let waits = waits(history, terms, register);
        let mut free_since = None;
        for (attempt, grant) in grants {
            let Some(span) = grant.validity() else {
                continue;
            };
            let gap = Span {
                from: free_since.unwrap_or(span.from),
                to: span.from,
            };
            for waited in overlaps(gap, &waits) {
                let unexplained = rest(waited, &excuses)
                    .into_iter()
                    .find(|span| span.length() > wait_limit);
                if let Some(unexplained) = unexplained {
                    let message = format!(
                        "lock {register} was free for {:?} while somebody waited, until {}",
                        unexplained.length(),
                        attempt.ask
                    );
                    return Err(Violation::new(message, unexplained.from, unexplained.to));
                }
            }
            free_since = free_since.max(Some(span.to));
        }
    }
    Ok(())
}

/// The times at which somebody who may have a lock waited for it without a bound.
fn waits(history: &History, terms: &Terms, register: u32) -> Vec<Span> {
    let waiting = history
        .attempts
        .values()
        .filter(|attempt| attempt.register == register && attempt.how == How::Wait);
    let waited = waiting.filter_map(|attempt| {
        Some((
            attempt,
            Span {
                from: attempt.asked,
                to: attempt.answered?,
            },
        ))
    });
    merged(
        waited
            .flat_map(|(attempt, span)| rest(span, &standstills(history, terms, attempt)))
            .collect(),
    )
}

/// The times at which an entry of a client that does not act may be in the queue, or requests
/// cannot be served: from a kill or a pause until the lease has expired, which a new leader starts
/// anew. When the store goes back, some entries return that nobody removes.
fn excuses(history: &History, register: u32) -> Vec<Span> {
    let ttl = |process, span| {
        history
            .longest_ttl(register, Some(process), span)
            .unwrap_or_default()
    };
    let mut inactive: Vec<_> = history
        .inactivity()
        .map(|(process, span)| (ttl(process, span), span))
        .collect();
    for span in &history.returns {
        let came_back = history.longest_ttl_back(register, *span);
        inactive.extend(came_back.map(|ttl| {
            (
                ttl,
                Span {
                    from: span.to,
                    to: span.to,
                },
            )
        }));
    }
    let mut spans = history.outages.clone();
    for (ttl, Span { from, to }) in inactive {
        let mut until = from.plus(ttl + EXPIRY);
        for election in history.elections.iter().filter(|at| **at >= from) {
            if *election <= until.plus(NOTICED) {
                until = until.max(election.plus(ttl + EXPIRY));
            }
        }
        // A process that resumes clears up its own entries.
        spans.push(Span {
            from,
            to: if to > from { until.max(to) } else { until },
        });
    }
    merged(spans)
}

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use std::time::Duration;

    use crate::event::{Ask, How, Kind};

    /// One client releases at 5 ms; another, which has waited since 1 ms, is granted the lock at
    /// `millis`.
    fn waits_until(story: Story, millis: u64) -> Story {
        let granted = Kind::Granted {
            ask: Ask(2),
            token: 2,
            valid_until: at(millis + 10_000),
        };
        story
            .holds(0, 1, 1, 1)
            .asks(1, 2, 2)
            .releases(5, 1, 1)
            .then(millis, 2, granted)
    }

    fn member(story: Story, from: u64, to: u64) -> Story {
        let fault = || "kill a member".to_owned();
        story
            .then(
                from,
                0,
                Kind::FaultBegan {
                    fault: fault(),
                    majority: false,
                },
            )
            .then(to, 0, Kind::FaultEnded { fault: fault() })
    }

    #[test]
    fn a_stranded_waiter_is_caught() {
        waits_until(Story::default(), 10_000).keeps(check);
        waits_until(Story::default(), 20_000).breaks(check, "lock 0 was free for 19.995s");
        waits_until(member(Story::default(), 10, 30_000), 20_000).breaks(check, "was free");
    }

    #[test]
    fn who_is_told_does_not_wait_for_the_end_of_a_lease() {
        waits_until(Story::default(), 5_000).prompt().keeps(check);
        waits_until(Story::default(), 5_100)
            .prompt()
            .breaks(check, "was free for 5.095s");
        waits_until(Story::default().outage(4_000, 5_000), 5_100)
            .prompt()
            .keeps(check);
        waits_until(Story::default().asks(0, 3, 3).pause(3, 0, 1), 16_000)
            .prompt()
            .keeps(check);
        waits_until(Story::default().asks(0, 3, 3).pause(3, 0, 1), 16_100)
            .prompt()
            .breaks(check, "was free for 5.099s");
    }

    #[test]
    fn nobody_is_stranded_where_nobody_waits() {
        Story::default()
            .holds(0, 1, 1, 1)
            .releases(5, 1, 1)
            .holds(60_000, 1, 2, 2)
            .keeps(check);
    }

    #[test]
    fn an_entry_of_the_dead_is_in_the_way_for_a_ttl() {
        let killed = || {
            Story::default()
                .asks(0, 3, 3)
                .then(2, 0, Kind::Killed { process: 3 })
        };
        waits_until(killed(), 27_000).keeps(check);
        waits_until(killed(), 29_000).breaks(check, "was free");
    }

    #[test]
    fn and_for_another_one_with_each_new_leader() {
        let killed = || {
            Story::default()
                .asks(0, 3, 3)
                .then(2, 0, Kind::Killed { process: 3 })
        };
        let elected = |millis| killed().then(millis, 0, Kind::Elected { term: 2 });
        waits_until(elected(12_000), 39_000).keeps(check);
        waits_until(elected(12_000), 41_000).breaks(check, "was free");
        // The lease had expired by then.
        waits_until(elected(16_000), 30_000).breaks(check, "was free");
        waits_until(member(killed(), 9_000, 12_000), 39_000).breaks(check, "was free");
    }

    #[test]
    fn who_may_take_no_lock_after_a_return_is_stranded_only_afterwards() {
        let back = || Story::default().goes_back(6_000, 7_000);
        // The client notices within 12 s, is then quiet for a TTL of 10 s, and is not granted the
        // lock for 15 s.
        waits_until(back(), 44_000).keeps(check);
        waits_until(back(), 44_001).breaks(check, "was free for 15.001s");
        waits_until(back().pause(2, 8_000, 20_000), 57_000).keeps(check);
        waits_until(back().pause(2, 8_000, 20_000), 57_001).breaks(check, "was free for 15.001s");
        // Before the return, everybody may take the lock.
        waits_until(Story::default().goes_back(15_005, 16_000), 40_000).keeps(check);
        waits_until(Story::default().goes_back(15_006, 16_000), 40_000)
            .breaks(check, "was free for 15.001s");
        // Nobody is quiet where no token is handed out twice.
        let told = || Story::default().goes_back(4_000, 5_000).prompt();
        waits_until(told(), 21_000).keeps(check);
        waits_until(told(), 21_001).breaks(check, "was free for 5.001s");
    }

    #[test]
    fn an_entry_comes_back_for_its_ttl_with_data_that_has_it() {
        let backed_up = |millis, until| {
            let asked = Kind::Asked {
                ask: Ask(3),
                register: 0,
                how: How::Wait,
                ttl: Duration::from_secs(30),
            };
            let granted = Kind::Granted {
                ask: Ask(3),
                token: 3,
                valid_until: at(32_000),
            };
            let long = Story::default()
                .then(6, 3, asked)
                .then(6, 3, granted)
                .releases(8_000, 3, 3);
            waits_until(
                long.then(millis, 0, Kind::BackedUp)
                    .goes_back(20_000, 21_000),
                until,
            )
        };
        backed_up(12_000, 69_000).keeps(check);
        backed_up(12_000, 69_001).breaks(check, "was free for 15.001s");
        backed_up(14_000, 58_000).keeps(check);
        backed_up(14_000, 58_001).breaks(check, "was free for 15.001s");
    }

    #[test]
    fn an_entry_of_the_dead_comes_back_with_the_store() {
        let killed = || {
            Story::default()
                .asks(0, 3, 3)
                .then(2, 0, Kind::Killed { process: 3 })
        };
        // The election extends the excuse beyond the time for which any client stands still.
        let elected = |story: Story| {
            story
                .goes_back(9_000, 12_000)
                .then(24_000, 0, Kind::Elected { term: 2 })
        };
        waits_until(elected(killed()), 52_000).keeps(check);
        waits_until(elected(killed()), 52_001).breaks(check, "was free for 15.001s");
        waits_until(elected(Story::default()), 49_000).keeps(check);
        waits_until(elected(Story::default()), 49_001).breaks(check, "was free for 15.001s");
    }
}
