use std::collections::{HashMap, HashSet};

use super::{Terms, Violation};
use crate::{event::Kind, history::History};

/// Every accepted write is one more than the one before, and every acknowledged increment is among
/// these writes.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    let mut values: HashMap<u32, (u64, crate::event::Instant)> = HashMap::new();
    let mut written = HashSet::new();
    for event in &history.events {
        if let Kind::Wrote {
            ask,
            register,
            token,
            value,
        } = &event.kind
        {
            let (before, since) = values
                .insert(*register, (*value, event.at))
                .unwrap_or((0, event.at));
            if *value != before + 1 {
                let message = format!(
                    "{ask} with token {token} wrote {value} over {before} into register {register}"
                );
                return Err(Violation::new(message, since, event.at));
            }
            written.insert((*ask, *value));
        }
    }
    let acknowledged = |kind: &Kind| match kind {
        Kind::Incremented { ask, value } => Some((*ask, *value)),
        _ => None,
    };
    let missing = history.events.iter().find(|event| {
        acknowledged(&event.kind).is_some_and(|increment| !written.contains(&increment))
    });
    missing.map_or(Ok(()), |event| {
        Err(Violation::new(
            format!("acknowledged and not written: {:?}", event.kind),
            event.at,
            event.at,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    fn wrote(story: Story, millis: u64, value: u64) -> Story {
        story.then(
            millis,
            0,
            Kind::Wrote {
                ask: Ask(1),
                register: 0,
                token: 1,
                value,
            },
        )
    }

    #[test]
    fn a_write_over_another_breaks() {
        wrote(wrote(Story::default(), 1, 1), 2, 2).keeps(check);
        wrote(wrote(Story::default(), 1, 1), 2, 1).breaks(check, "wrote 1 over 1");
        wrote(wrote(Story::default(), 1, 1), 2, 3).breaks(check, "wrote 3 over 1");
    }

    #[test]
    fn an_acknowledged_increment_that_was_not_written_breaks() {
        let acknowledged = |story: Story| {
            story.then(
                3,
                1,
                Kind::Incremented {
                    ask: Ask(1),
                    value: 1,
                },
            )
        };
        acknowledged(wrote(Story::default(), 1, 1)).keeps(check);
        acknowledged(Story::default()).breaks(check, "not written");
    }
}
