use super::{Terms, Violation};
use crate::history::History;

/// Every acquire has an outcome, and every guard an end, except where the process was killed.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    let end = history.events.last().map(|event| event.at);
    for attempt in history
        .attempts
        .values()
        .filter(|attempt| !history.killed.contains_key(&attempt.process))
    {
        let stuck = match &attempt.grant {
            None if attempt.answered.is_none() => "asked for",
            Some(grant) if !grant.ended => "got and did not end",
            _ => continue,
        };
        let message = format!(
            "{} {stuck} lock {} ({:?})",
            attempt.ask, attempt.register, attempt.how
        );
        return Err(Violation::new(
            message,
            attempt.asked,
            end.unwrap_or(attempt.asked),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    #[test]
    fn a_stranded_waiter_breaks() {
        Story::default()
            .asks(0, 1, 1)
            .breaks(check, "#0.1 asked for");
        Story::default()
            .asks(0, 1, 1)
            .then(5, 1, Kind::TimedOut { ask: Ask(1) })
            .keeps(check);
        Story::default()
            .asks(0, 1, 1)
            .then(5, 0, Kind::Killed { process: 1 })
            .keeps(check);
    }

    #[test]
    fn a_release_that_hangs_breaks() {
        Story::default()
            .holds(0, 1, 1, 1)
            .then(5, 1, Kind::Ending { ask: Ask(1) })
            .breaks(check, "got and did not end");
        Story::default()
            .holds(0, 1, 1, 1)
            .releases(5, 1, 1)
            .keeps(check);
    }
}
