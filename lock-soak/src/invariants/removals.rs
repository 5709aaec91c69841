use std::time::Duration;

use super::{Terms, Violation};
use crate::history::{History, Span};

/// Time within which a holder knows that an operator has removed its entry: half of the time by
/// which its next renewal may be off.
pub(super) fn noticed_within(ttl: Duration) -> Duration {
    ttl / 6
}

/// The holder of a removed entry is told soon, and not only by its next renewal, unless it is
/// stopped or the store does not answer.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    for attempt in history.attempts.values() {
        let limit = noticed_within(attempt.ttl);
        let Some((grant, removed)) = attempt
            .grant
            .as_ref()
            .and_then(|grant| Some((grant, grant.removed?)))
        else {
            continue;
        };
        let latest = removed.plus(limit);
        let noticed = [grant.lost, grant.ending]
            .into_iter()
            .flatten()
            .any(|at| at <= latest);
        let killed = history
            .killed
            .get(&attempt.process)
            .is_some_and(|at| *at <= latest);
        if !noticed
            && !killed
            && !history.excused(
                attempt.process,
                Span {
                    from: removed,
                    to: latest,
                },
            )
        {
            let message = format!(
                "{} did not notice within {limit:?} that its entry was removed",
                attempt.ask
            );
            return Err(Violation::new(message, removed, latest));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    fn removed() -> Story {
        Story::default().holds(0, 1, 1, 1).removal(100, 1)
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
    fn a_removal_that_is_noticed_late_or_never_breaks() {
        lost(removed(), 1_766).keeps(check);
        lost(removed(), 1_767).breaks(check, "#0.1 did not notice");
        removed().breaks(check, "#0.1 did not notice");
        removed().releases(200, 1, 1).keeps(check);
    }

    #[test]
    fn who_cannot_be_told_is_excused() {
        removed().pause(1, 150, 5_000).keeps(check);
        removed().outage(150, 5_000).keeps(check);
        removed()
            .then(150, 0, Kind::Killed { process: 1 })
            .keeps(check);
        removed()
            .pause(2, 150, 5_000)
            .breaks(check, "did not notice");
    }
}
