use std::time::Duration;

use super::{Terms, Violation};
use crate::history::{Attempt, History, Span};

/// How long after its next renewal was due a holder may take to learn of anything from a store that is well.
const TOLD: Duration = Duration::from_secs(2);

/// When a holder need not know yet that the store went back behind its guard: until its next renewal, and an answer to it.
pub(super) fn unnoticed(history: &History, attempt: &Attempt) -> Option<Span> {
    let undone = attempt.grant.as_ref()?.undone?;
    let last_pause =
        history.absences.get(&attempt.process).into_iter().flatten().filter(|pause| pause.overlaps(undone)).map(|pause| pause.to);
    let from = last_pause.max().unwrap_or(undone.to).max(undone.to);
    Some(Span { from: undone.from, to: from.plus(attempt.ttl / 3 + TOLD) })
}

/// Where a store forgets, nobody's guard outlasts its return for long: it is lost with the first answer, unless its process is stopped,
/// or the store does not answer.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for attempt in history.attempts.values().filter(|_| terms.forgets_tokens) {
        let (Some(span), Some(grant)) = (unnoticed(history, attempt), &attempt.grant) else { continue };
        let ends = [Some(grant.deadline), grant.ending, grant.lost, history.killed.get(&attempt.process).copied()];
        let is_over = ends.into_iter().flatten().any(|end| end <= span.to);
        let healthy = Span { from: grant.undone.map_or(span.to, |undone| undone.to.plus(EDGE)), to: span.to };
        if !is_over && !history.excused(attempt.process, healthy) {
            let message = format!("{} still held its lock {TOLD:?} after a renewal from a store that went back", attempt.ask);
            return Err(Violation::new(message, span.from, span.to));
        }
    }
    Ok(())
}

/// The outage that goes with it is no excuse.
const EDGE: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use crate::event::{Ask, Kind};

    /// Renewed for long enough.
    fn undone() -> Story {
        let held = Story::default().holds(0, 1, 1, 1).then(4_000, 1, Kind::Held { ask: Ask(1), valid_until: at(14_000) });
        held.goes_back(5_000, 6_000)
    }

    fn lost(story: Story, millis: u64) -> Story {
        story.then(millis, 1, Kind::Lost { ask: Ask(1), why: "Removed".into() })
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
    fn a_guard_of_afterwards_or_that_cannot_be_told_does_not() {
        Story::default().goes_back(1, 2).holds(10, 1, 1, 1).keeps(check);
        undone().then(7_000, 0, Kind::Killed { process: 1 }).keeps(check);
        undone().outage(8_000, 9_000).keeps(check);
    }
}
