use std::time::Duration;

use super::{Terms, Violation};
use crate::{
    event::Instant,
    history::{Attempt, History, Span, merged},
};

/// Time that a holder may take, after its next renewal was due, to learn of anything from a store
/// that is well.
const TOLD: Duration = Duration::from_secs(2);

/// Time within which a client notices that a store went back which is well again. It mostly notices
/// with its next request. If the store has grown beyond what the client knows, it notices only when
/// it looks for entries that came back, every 10 s.
const NOTICED: Duration = Duration::from_secs(12);

/// The moment by which a process has noticed; it notices nothing while it is stopped.
pub(super) fn noticed(history: &History, process: u32, back: Span) -> Instant {
    let pauses = history.absences.get(&process).into_iter().flatten();
    let at_first = back.to.plus(NOTICED);
    let overlapping = pauses.filter(|pause| {
        pause.overlaps(Span {
            from: back.from,
            to: at_first,
        })
    });
    overlapping
        .map(|pause| pause.to.plus(NOTICED))
        .fold(at_first, Instant::max)
}

/// The times at which the client of an attempt may take no lock because the store went back: until
/// it has noticed, and from then on for as long as guards of its longest lease may still be valid,
/// because their holders cannot be told.
pub(super) fn standstills(history: &History, terms: &Terms, attempt: &Attempt) -> Vec<Span> {
    let returns = history.returns.iter().filter(|_| terms.forgets_tokens);
    let standstill = |back: &Span| {
        let span = Span {
            from: back.from,
            to: noticed(history, attempt.process, *back),
        };
        // The client always has a lease of the usual length.
        let longest = history
            .longest_lease(attempt.client(), span)
            .unwrap_or_default()
            .max(terms.ttls.usual());
        Span {
            to: span.to.plus(longest),
            ..span
        }
    };
    merged(returns.map(standstill).collect())
}

/// The time in which a holder need not know yet that the store went back behind its guard: until
/// its next renewal, and the answer to it.
pub(super) fn unnoticed(history: &History, attempt: &Attempt) -> Option<Span> {
    let undone = attempt.grant.as_ref()?.undone?;
    let last_pause = history
        .absences
        .get(&attempt.process)
        .into_iter()
        .flatten()
        .filter(|pause| pause.overlaps(undone))
        .map(|pause| pause.to);
    let from = last_pause.max().unwrap_or(undone.to).max(undone.to);
    Some(Span {
        from: undone.from,
        to: from.plus(attempt.ttl / 3 + TOLD),
    })
}

/// A guard that its store has forgotten, in a store that forgets tokens, does not outlast the
/// store's return for long: it is lost with the first answer, unless its process is stopped or the
/// store does not answer.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for attempt in history.attempts.values().filter(|_| terms.forgets_tokens) {
        let (Some(span), Some(grant)) = (unnoticed(history, attempt), &attempt.grant) else {
            continue;
        };
        let ends = [
            Some(grant.deadline),
            grant.ending,
            grant.lost,
            history.killed.get(&attempt.process).copied(),
        ];
        let is_over = ends.into_iter().flatten().any(|end| end <= span.to);
        let healthy = Span {
            from: grant.undone.map_or(span.to, |undone| undone.to.plus(EDGE)),
            to: span.to,
        };
        if grant
            .undone
            .is_some_and(|undone| history.has_back(grant.at, undone))
        {
            continue;
        }
        if !is_over && !history.excused(attempt.process, healthy) {
            let message = format!(
                "{} still held its lock {TOLD:?} after a renewal from a store that went back",
                attempt.ask
            );
            return Err(Violation::new(message, span.from, span.to));
        }
    }
    Ok(())
}

/// The outage that goes with the return is no excuse.
const EDGE: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use crate::event::{Ask, Kind};

    /// A guard that was renewed and is valid for long enough.
    fn undone() -> Story {
        let held = Story::default().holds(0, 1, 1, 1).then(
            4_000,
            1,
            Kind::Held {
                ask: Ask(1),
                valid_until: at(14_000),
            },
        );
        held.goes_back(5_000, 6_000)
    }

    fn lost(story: Story, millis: u64) -> Story {
        story.then(
            millis,
            1,
            Kind::Lost {
                ask: Ask(1),
                why: "Removed".into(),
            },
        )
    }

    #[test]
    fn a_guard_that_outlasts_its_store_breaks() {
        lost(undone(), 11_000).keeps(check);
        lost(undone(), 11_500).breaks(check, "#0.1 still held");
        undone().breaks(check, "#0.1 still held");
        undone().releases(7_000, 1, 1).keeps(check);
        undone().prompt().keeps(check);
    }

    #[test]
    fn a_guard_that_the_store_has_not_forgotten_need_not_be_lost() {
        let backed_up = |millis| Story::default().then(millis, 0, Kind::BackedUp);
        let held = |story: Story, millis| story.holds(millis, 1, 1, 1).goes_back(25_000, 26_000);
        let renewed = |story: Story| {
            story.then(
                29_000,
                1,
                Kind::Held {
                    ask: Ask(1),
                    valid_until: at(39_000),
                },
            )
        };
        renewed(held(backed_up(22_000), 20_000)).keeps(check);
        renewed(held(backed_up(21_999), 20_000)).breaks(check, "#0.1 still held");
    }

    #[test]
    fn a_guard_of_afterwards_or_that_cannot_be_told_does_not() {
        Story::default()
            .goes_back(1, 2)
            .holds(10, 1, 1, 1)
            .keeps(check);
        undone()
            .then(7_000, 0, Kind::Killed { process: 1 })
            .keeps(check);
        undone().outage(8_000, 9_000).keeps(check);
    }
}
