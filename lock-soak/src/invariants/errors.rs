use std::time::Duration;

use super::{Terms, Violation};
use crate::{
    event::{Event, How, Kind},
    history::{History, Span},
};

/// Whoever waits for less than a store on a loaded machine may take for an answer is told that it did not answer.
const IMPATIENT: Duration = Duration::from_millis(250);

/// A call fails only where the store was without a majority, or the process stopped, no longer ago than its patience lasts.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        let Some(error) = error_of(event) else { continue };
        // However long it had waited: the cause of an error is not longer ago than that.
        let attempt = event.kind.ask().and_then(|ask| history.attempts.get(&ask));
        if attempt.is_some_and(|attempt| matches!(attempt.how, How::Bounded(limit) if limit < IMPATIENT)) {
            continue;
        }
        let ttl = attempt.map_or(terms.ttls.most(), |attempt| attempt.ttl);
        let begin = event.at.minus((terms.patience)(ttl));
        if !history.excused(event.process, Span { from: begin, to: event.at }) {
            return Err(Violation::new(error, begin, event.at));
        }
    }
    Ok(())
}

fn error_of(event: &Event) -> Option<String> {
    match &event.kind {
        Kind::Failed { ask, error } => Some(format!("{ask} failed: {error}")),
        Kind::Ended { ask, error: Some(error) } => Some(format!("the release of {ask} failed: {error}")),
        Kind::Closed { error: Some(error) } => Some(format!("a shutdown failed: {error}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use std::time::Duration;

    use crate::event::{Ask, How, Kind};

    fn failed(story: Story) -> Story {
        story.asks(0, 1, 1).then(26_000, 1, Kind::Failed { ask: Ask(1), error: "unavailable".into() })
    }

    fn fault(majority: bool) -> Kind {
        Kind::FaultBegan { fault: "a fault".into(), majority }
    }

    #[test]
    fn an_error_while_a_majority_is_there_breaks() {
        failed(Story::default().then(1, 0, fault(false))).breaks(check, "#0.1 failed: unavailable");
        failed(Story::default().then(20_000, 0, fault(true))).keeps(check);
        failed(Story::default().outage(1, 23_999)).breaks(check, "#0.1 failed");
        failed(Story::default().outage(1, 24_001)).keeps(check);
    }

    #[test]
    fn who_hardly_waits_may_not_get_an_answer() {
        let bounded = |millis| {
            let how = How::Bounded(Duration::from_millis(millis));
            let asked = Kind::Asked { ask: Ask(1), register: 0, how, ttl: Duration::from_secs(10) };
            Story::default().then(0, 1, asked).then(millis, 1, Kind::Failed { ask: Ask(1), error: "no answer".into() })
        };
        bounded(249).keeps(check);
        bounded(250).breaks(check, "#0.1 failed: no answer");
    }

    #[test]
    fn a_failed_release_breaks() {
        let ended = Kind::Ended { ask: Ask(1), error: Some("no answer".into()) };
        Story::default().holds(0, 1, 1, 1).then(5, 1, ended).breaks(check, "the release of #0.1 failed");
    }
}
