use super::{Terms, Violation};
use crate::{
    event::{Event, Kind},
    history::{History, Span},
};

/// A call fails only where the store was without a majority, or the process stopped, no longer ago than its patience lasts.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        let Some(error) = error_of(event) else { continue };
        // However long it had waited: the cause of an error is not longer ago than that.
        let attempt = event.kind.ask().and_then(|ask| history.attempts.get(&ask));
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
    use crate::event::{Ask, Kind};

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
    fn a_failed_release_breaks() {
        let ended = Kind::Ended { ask: Ask(1), error: Some("no answer".into()) };
        Story::default().holds(0, 1, 1, 1).then(5, 1, ended).breaks(check, "the release of #0.1 failed");
    }
}
