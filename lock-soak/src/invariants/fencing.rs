use super::{Terms, Violation, removals::noticed_within, returns};
use crate::{
    event::{Instant, Kind},
    history::{History, Span},
};

/// A register refuses a token only when a larger one has come. The holder must know by then that it
/// lost the lock, unless an operator has just removed the entry, or the store has just gone back,
/// or went back without forgetting the guard.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        if let Kind::Refused {
            ask,
            still_held: true,
        } = &event.kind
        {
            let Some(attempt) = history.attempts.get(ask) else {
                continue;
            };
            let grant = attempt.grant.as_ref();
            let is_new = |at: Instant| {
                // A client that is stopped meanwhile is told when it resumes.
                let pauses = history.absences.get(&attempt.process).into_iter().flatten();
                let pause = pauses
                    .filter(|pause| pause.overlaps(Span { from: at, to: at }))
                    .map(|pause| pause.to)
                    .max();
                event.at >= at && event.at.since(pause.unwrap_or(at)) <= noticed_within(attempt.ttl)
            };
            let undone = returns::unnoticed(history, attempt);
            if grant.and_then(|grant| grant.removed).is_some_and(is_new)
                || undone.is_some_and(|span| span.from <= event.at && event.at <= span.to)
                || grant.is_some_and(|grant| {
                    grant.undone.is_some_and(|back| {
                        back.from <= event.at && history.has_back(grant.at, back)
                    })
                })
            {
                continue;
            }
            let since = grant.map_or(event.at, |grant| grant.at);
            return Err(Violation::new(
                format!("{ask} was refused while its guard was valid"),
                since,
                event.at,
            ));
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
        let refused = |still_held| {
            Story::default().holds(0, 1, 1, 1).then(
                5,
                1,
                Kind::Refused {
                    ask: Ask(1),
                    still_held,
                },
            )
        };
        refused(false).keeps(check);
        refused(true).breaks(check, "#0.1 was refused");
        refused(true).removal(4, 1).keeps(check);
        refused(true)
            .removal(6, 1)
            .breaks(check, "#0.1 was refused");
        refused(true).goes_back(1, 4).keeps(check);
        refused(true)
            .goes_back(6, 7)
            .breaks(check, "#0.1 was refused");
        refused(true)
            .removal(4, 2)
            .breaks(check, "#0.1 was refused");
        let stopped = |until| {
            let held = Story::default()
                .holds(0, 1, 1, 1)
                .pause(1, 2_000, until)
                .removal(3_000, 1);
            held.then(
                5_000,
                1,
                Kind::Refused {
                    ask: Ask(1),
                    still_held: true,
                },
            )
        };
        stopped(4_000).keeps(check);
        stopped(3_300).breaks(check, "#0.1 was refused");
    }
}
