use super::{Terms, Violation};
use crate::{event::Kind, history::History};

/// The store is empty once all clients have left and the leases of the killed ones have expired.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    let left = |kind: &Kind| match kind {
        Kind::LeftBehind { what } => Some(what.clone()),
        _ => None,
    };
    let found = history
        .events
        .iter()
        .find_map(|event| Some((left(&event.kind)?, event.at)));
    found.map_or(Ok(()), |(what, at)| {
        Err(Violation::new(format!("left behind: {what}"), at, at))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::Kind;

    #[test]
    fn a_leftover_breaks() {
        Story::default()
            .holds(0, 1, 1, 1)
            .releases(5, 1, 1)
            .keeps(check);
        Story::default()
            .then(
                9,
                0,
                Kind::LeftBehind {
                    what: "the key x".into(),
                },
            )
            .breaks(check, "the key x");
    }
}
