use super::{Terms, Violation};
use crate::history::History;

/// The times in which two guards of one lock are valid do not overlap, whoever has the guards.
///
/// Registers would not show it: they refuse a holder that was overtaken, for that is what tokens
/// are for. A register without tokens would show it only where both holders write. Here it is
/// enough that both say that they may, which they do before and after each step, on one clock.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    for (register, grants) in history.by_register() {
        let mut last: Option<(crate::event::Ask, crate::history::Span)> = None;
        for (attempt, grant) in grants {
            let Some(span) = grant.validity() else {
                continue;
            };
            match last {
                Some((other, held)) if span.from < held.to => {
                    let overlap = held.to.min(span.to).since(span.from);
                    let message = format!(
                        "{other} and {} both held lock {register} for {overlap:?}",
                        attempt.ask
                    );
                    return Err(Violation::new(message, held.from, held.to.min(span.to)));
                }
                _ => last = Some((attempt.ask, span)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use crate::event::{Ask, Kind};

    #[test]
    fn a_grant_before_the_release_breaks() {
        Story::default()
            .holds(0, 1, 1, 1)
            .releases(5, 1, 1)
            .holds(6, 2, 2, 2)
            .keeps(check);
        Story::default()
            .holds(0, 1, 1, 1)
            .holds(4, 2, 2, 2)
            .releases(5, 1, 1)
            .breaks(check, "both held lock 0 for 1ms");
    }

    #[test]
    fn a_grant_before_the_deadline_breaks() {
        Story::default()
            .holds(0, 1, 1, 1)
            .holds(10_000, 2, 2, 2)
            .keeps(check);
        Story::default()
            .holds(0, 1, 1, 1)
            .holds(9_999, 2, 2, 2)
            .breaks(check, "for 1ms");
    }

    #[test]
    fn a_renewal_counts_until_its_own_deadline() {
        let renewed = || {
            Story::default().holds(0, 1, 1, 1).then(
                8_000,
                1,
                Kind::Held {
                    ask: Ask(1),
                    valid_until: at(18_000),
                },
            )
        };
        renewed().holds(18_000, 2, 2, 2).keeps(check);
        renewed().holds(12_000, 2, 2, 2).breaks(check, "for 6s");
    }

    #[test]
    fn a_killed_holder_holds_nothing_and_a_lost_one_neither() {
        let killed = Story::default()
            .holds(0, 1, 1, 1)
            .then(100, 0, Kind::Killed { process: 1 });
        killed.holds(200, 2, 2, 2).keeps(check);
        let lost = Story::default().holds(0, 1, 1, 1).then(
            100,
            1,
            Kind::Lost {
                ask: Ask(1),
                why: String::new(),
            },
        );
        lost.holds(200, 2, 2, 2).keeps(check);
    }

    #[test]
    fn whose_entry_was_removed_holds_nothing() {
        Story::default()
            .holds(0, 1, 1, 1)
            .removal(100, 1)
            .holds(101, 2, 2, 2)
            .keeps(check);
        Story::default()
            .holds(0, 1, 1, 1)
            .removal(100, 7)
            .holds(101, 2, 2, 2)
            .breaks(check, "both held");
    }

    #[test]
    fn a_guard_holds_nothing_of_a_store_that_went_back_behind_it() {
        Story::default()
            .holds(0, 1, 1, 1)
            .goes_back(100, 200)
            .holds(201, 2, 2, 1)
            .keeps(check);
        Story::default()
            .goes_back(100, 200)
            .holds(201, 1, 1, 1)
            .holds(202, 2, 2, 2)
            .breaks(check, "both held");
    }

    #[test]
    fn the_order_of_reports_does_not_matter() {
        let story = Story::default()
            .holds(0, 1, 1, 1)
            .releases(20, 1, 1)
            .holds(5_000, 2, 2, 2);
        story
            .holds(30, 3, 3, 3)
            .releases(40, 3, 3)
            .holds(5_100, 3, 4, 4)
            .breaks(check, "both held");
    }
}
