use std::time::Duration;

use super::{Terms, Violation};
use crate::{event::Kind, history::History};

/// The longest time without an increment of any client.
const LONGEST: Duration = Duration::from_secs(1);

/// Where nothing is disturbed and nobody holds a lock for long, increments go on all the time, from
/// the first one until the workers are told to stop.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    if !terms.steady {
        return Ok(());
    }
    let is_increment = |kind: &Kind| matches!(kind, Kind::Incremented { .. });
    let is_wish = |kind: &Kind| matches!(kind, Kind::Asked { .. });
    let mut events = history.events.iter();
    let Some(first) = events.find(|event| is_increment(&event.kind)) else {
        let at = history
            .events
            .last()
            .map_or(crate::event::Instant(0), |event| event.at);
        return Err(Violation::new("nobody has added to any register", at, at));
    };
    let mut last = first.at;
    for event in events.filter(|event| is_increment(&event.kind) || is_wish(&event.kind)) {
        if event.at.since(last) > LONGEST {
            let message = format!("no increment in {:?}", event.at.since(last));
            return Err(Violation::new(message, last, event.at));
        }
        if is_increment(&event.kind) {
            last = event.at;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    fn increments(story: Story, millis: u64, ask: u64) -> Story {
        let value = ask;
        let ask = Ask(ask);
        story.then(millis, 1, Kind::Incremented { ask, value })
    }

    #[test]
    fn a_second_without_an_increment_breaks() {
        let at = |millis| increments(increments(Story::default(), 10, 1), millis, 2);
        at(1_010).steady().keeps(check);
        at(1_011).steady().breaks(check, "no increment in 1.001s");
        at(1_011).keeps(check);
    }

    #[test]
    fn who_still_asks_has_not_come_to_the_end() {
        let asks = |millis| increments(Story::default(), 10, 1).asks(millis, 1, 2);
        asks(1_010).steady().keeps(check);
        asks(1_011).steady().breaks(check, "no increment");
        Story::default().steady().breaks(check, "nobody");
    }
}
