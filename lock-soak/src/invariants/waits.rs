use std::time::Duration;

use super::{Terms, Violation};
use crate::{
    event::{How, Instant},
    history::{History, Span, merged, overlaps},
};

/// How long a lock may be free with waiters: as long as it takes to give up on a member that is silent, for the one who
/// releases and then for the one who waits, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// The store looks for expired leases from time to time, and elects in between.
const EXPIRY: Duration = Duration::from_secs(3);
/// How long after an election somebody looks.
const NOTICED: Duration = Duration::from_secs(2);

/// While somebody waits, a lock is not free for long, unless an entry of a process that is stopped or dead may be in the way. Where
/// waiters are told, and all has been well for a while, it is not free for so long that the end of a lease could have told them.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    not_free_for(PATIENCE, |register| excuses(history, register), history)?;
    if terms.prompt { not_free_for(terms.ttls.usual() / 2, |register| history.unrest(register), history) } else { Ok(()) }
}

fn not_free_for(patience: Duration, excuses: impl Fn(u32) -> Vec<Span>, history: &History) -> Result<(), Violation> {
    for (register, grants) in history.by_register() {
        let excuses = excuses(register);
        let waits = waits(history, register);
        let mut free_since = None;
        for (attempt, grant) in grants {
            let Some(span) = grant.validity() else { continue };
            let gap = Span { from: free_since.unwrap_or(span.from), to: span.from };
            for waited in overlaps(gap, &waits) {
                let unexplained = longest_rest(waited, &excuses);
                if unexplained.to.since(unexplained.from) > patience {
                    let message = format!(
                        "lock {register} was free for {:?} while somebody waited, until {}",
                        unexplained.to.since(unexplained.from),
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

/// When anybody waited without a bound.
fn waits(history: &History, register: u32) -> Vec<Span> {
    let waiting = history.attempts.values().filter(|attempt| attempt.register == register && attempt.how == How::Wait);
    merged(waiting.filter_map(|attempt| Some(Span { from: attempt.asked, to: attempt.answered? })).collect())
}

/// When an entry of somebody who does not act may be in the queue, or requests cannot be served: from a kill or a pause until the
/// lease has run out; a new leader lets it begin again. With a store that goes back it comes back.
fn excuses(history: &History, register: u32) -> Vec<Span> {
    let ttl = |process, span| history.longest_ttl(register, Some(process), span).unwrap_or_default();
    let mut inactive: Vec<_> = history.inactivity().map(|(process, span)| (ttl(process, span), span)).collect();
    for span in &history.returns {
        let back = Span { from: span.to, to: span.to };
        let dead = inactive.iter().filter(|(ttl, gone)| gone.from <= span.from && gone.from.plus(*ttl * 2) >= span.from);
        let come_back: Vec<_> = dead.map(|(ttl, _)| (*ttl, back)).collect();
        inactive.extend(come_back);
    }
    let mut spans = history.outages.clone();
    for (ttl, Span { from, to }) in inactive {
        let mut until = from.plus(ttl + EXPIRY);
        for election in history.elections.iter().filter(|at| **at >= from) {
            if *election <= until.plus(NOTICED) {
                until = until.max(election.plus(ttl + EXPIRY));
            }
        }
        // One that goes on clears up behind itself.
        spans.push(Span { from, to: if to > from { until.max(to) } else { until } });
    }
    merged(spans)
}

/// The longest part of a span that none of the excuses, which are in order and apart, covers.
fn longest_rest(span: Span, excuses: &[Span]) -> Span {
    let mut best = Span { from: span.from, to: span.from };
    let mut from = span.from;
    let mut consider = |from: Instant, to: Instant| {
        if to.since(from) > best.to.since(best.from) {
            best = Span { from, to };
        }
    };
    for excuse in overlaps(span, excuses) {
        consider(from, excuse.from);
        from = excuse.to;
    }
    consider(from, span.to);
    best
}

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use crate::event::{Ask, Kind};

    /// One releases at 5 ms; another, who has waited since 1 ms, is granted then.
    fn waits_until(story: Story, millis: u64) -> Story {
        let granted = Kind::Granted { ask: Ask(2), token: 2, valid_until: at(millis + 10_000) };
        story.holds(0, 1, 1, 1).asks(1, 2, 2).releases(5, 1, 1).then(millis, 2, granted)
    }

    fn member(story: Story, from: u64, to: u64) -> Story {
        let fault = || "kill a member".to_owned();
        story.then(from, 0, Kind::FaultBegan { fault: fault(), majority: false }).then(to, 0, Kind::FaultEnded { fault: fault() })
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
        waits_until(Story::default(), 5_100).prompt().breaks(check, "was free for 5.095s");
        waits_until(Story::default().outage(4_000, 5_000), 5_100).prompt().keeps(check);
        waits_until(Story::default().asks(0, 3, 3).pause(3, 0, 1), 16_000).prompt().keeps(check);
        waits_until(Story::default().asks(0, 3, 3).pause(3, 0, 1), 16_100).prompt().breaks(check, "was free for 5.099s");
    }

    #[test]
    fn nobody_is_stranded_where_nobody_waits() {
        Story::default().holds(0, 1, 1, 1).releases(5, 1, 1).holds(60_000, 1, 2, 2).keeps(check);
    }

    #[test]
    fn an_entry_of_the_dead_is_in_the_way_for_a_ttl() {
        let killed = || Story::default().asks(0, 3, 3).then(2, 0, Kind::Killed { process: 3 });
        waits_until(killed(), 27_000).keeps(check);
        waits_until(killed(), 29_000).breaks(check, "was free");
    }

    #[test]
    fn and_for_another_one_with_each_new_leader() {
        let killed = || Story::default().asks(0, 3, 3).then(2, 0, Kind::Killed { process: 3 });
        let elected = |millis| killed().then(millis, 0, Kind::Elected { term: 2 });
        waits_until(elected(12_000), 39_000).keeps(check);
        waits_until(elected(12_000), 41_000).breaks(check, "was free");
        // By then the lease had run out.
        waits_until(elected(16_000), 30_000).breaks(check, "was free");
        waits_until(member(killed(), 9_000, 12_000), 39_000).breaks(check, "was free");
    }

    #[test]
    fn only_an_entry_of_the_dead_comes_back_with_the_store() {
        waits_until(Story::default().goes_back(6_000, 7_000), 23_000).breaks(check, "was free");
        let killed = || Story::default().asks(0, 3, 3).then(2, 0, Kind::Killed { process: 3 });
        waits_until(killed().goes_back(9_000, 12_000), 39_000).keeps(check);
        waits_until(killed().goes_back(9_000, 12_000), 41_000).breaks(check, "was free");
    }
}
