use std::collections::BTreeMap;

use super::{Terms, Violation};
use crate::{
    event::How,
    history::{History, Span, rest},
};

/// Number of grants to others, for each client that may compete, before a waiter that is told of
/// each release must get the lock: of `n` equal clients one loses `15 n` times in a row once in
/// three million cases.
const MOST: usize = 15;

/// A waiter that is told of releases is not passed over again and again, once all has been well for
/// a while. If it were, the lock would go to whoever comes when it happens to be free, while the
/// waiter knows nothing of it.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    if !terms.prompt {
        return Ok(());
    }
    let most = MOST * terms.clients as usize;
    let by_register = history.by_register();
    let unrest: BTreeMap<_, _> = by_register
        .keys()
        .map(|register| (*register, history.unrest(*register)))
        .collect();
    for waiter in history
        .attempts
        .values()
        .filter(|attempt| attempt.how == How::Wait)
    {
        let all = by_register
            .get(&waiter.register)
            .map_or(&[][..], Vec::as_slice);
        let waited = Span {
            from: waiter.asked,
            to: waiter.answered.unwrap_or(waiter.asked),
        };
        for span in rest(
            waited,
            unrest.get(&waiter.register).map_or(&[], Vec::as_slice),
        ) {
            let from = all.partition_point(|(_, grant)| grant.at <= span.from);
            let passed = all[from..].partition_point(|(_, grant)| grant.at < span.to);
            if passed > most {
                let message = format!(
                    "{} waited for lock {} while others got it {passed} times",
                    waiter.ask, waiter.register
                );
                return Err(Violation::new(message, span.from, span.to));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    /// One client waits from 1 ms on, while another gets the lock `times` times, once a
    /// millisecond.
    fn passed_over(mut story: Story, times: u64) -> Story {
        story = story.asks(1, 2, 9_999);
        for turn in 2..2 + times {
            story = story
                .holds(turn * 2, 1, turn, turn)
                .releases(turn * 2, 1, turn);
        }
        story.then(5_000, 2, Kind::TimedOut { ask: Ask(9_999) })
    }

    #[test]
    fn who_is_passed_over_again_and_again_was_not_told() {
        passed_over(Story::default(), 120).prompt().keeps(check);
        passed_over(Story::default(), 121).prompt().breaks(
            check,
            "#0.9999 waited for lock 0 while others got it 121 times",
        );
        passed_over(Story::default(), 121).keeps(check);
    }

    #[test]
    fn only_what_happens_while_all_is_well_counts() {
        passed_over(Story::default().outage(0, 1), 160)
            .prompt()
            .keeps(check);
        passed_over(Story::default().outage(200, 201), 160)
            .prompt()
            .keeps(check);
        passed_over(Story::default().outage(400, 401), 200)
            .prompt()
            .breaks(check, "others got it");
    }
}
