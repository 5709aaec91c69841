use super::{Terms, Violation};
use crate::{event::Kind, history::History};

/// A worker that is told to stop does so in time and without an error of its own.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        if let Kind::EndedBadly { process, how } = &event.kind {
            return Err(Violation::new(
                format!("process {process}: {how}"),
                event.at,
                event.at,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::Kind;

    #[test]
    fn a_bad_end_breaks() {
        Story::default()
            .holds(0, 1, 1, 1)
            .releases(5, 1, 1)
            .then(9, 1, Kind::Closed { error: None })
            .keeps(check);
        let badly = Kind::EndedBadly {
            process: 1,
            how: "not within 60s".into(),
        };
        Story::default()
            .then(9, 0, badly)
            .breaks(check, "process 1: not within 60s");
    }
}
