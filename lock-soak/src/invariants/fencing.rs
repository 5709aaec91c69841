use super::{Terms, Violation, removals::noticed_within, returns};
use crate::{
    event::{Instant, Kind},
    history::History,
};

/// A register refuses a token only when somebody with a larger one has come; that must be known as a loss by then, unless an operator
/// has just removed the entry, or the store has just gone back.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        if let Kind::Refused { ask, still_held: true } = &event.kind {
            let Some(attempt) = history.attempts.get(ask) else { continue };
            let grant = attempt.grant.as_ref();
            let is_new = |at: Instant| event.at >= at && event.at.since(at) <= noticed_within(attempt.ttl);
            let undone = returns::unnoticed(history, attempt);
            if grant.and_then(|grant| grant.removed).is_some_and(is_new)
                || undone.is_some_and(|span| span.from <= event.at && event.at <= span.to)
            {
                continue;
            }
            let since = grant.map_or(event.at, |grant| grant.at);
            return Err(Violation::new(format!("{ask} was refused while its guard was valid"), since, event.at));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    #[test]
    fn a_refused_valid_guard_breaks() {
        let refused = |still_held| Story::default().holds(0, 1, 1, 1).then(5, 1, Kind::Refused { ask: Ask(1), still_held });
        refused(false).keeps(check);
        refused(true).breaks(check, "#0.1 was refused");
        refused(true).removal(4, 1).keeps(check);
        refused(true).removal(6, 1).breaks(check, "#0.1 was refused");
        refused(true).goes_back(1, 4).keeps(check);
        refused(true).goes_back(6, 7).breaks(check, "#0.1 was refused");
        refused(true).removal(4, 2).breaks(check, "#0.1 was refused");
    }
}
