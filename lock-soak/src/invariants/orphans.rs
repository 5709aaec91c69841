use std::{collections::BTreeMap, time::Duration};

use super::{Terms, Violation};
use crate::{
    event::{Instant, Kind},
    history::{History, Span},
};

/// Time after which the leftovers of a cancelled acquisition are gone.
const CLEARED: Duration = Duration::from_secs(1);

/// An entry in the store belongs to somebody who got the lock, or is gone soon, unless something
/// was not well.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    let grants = history
        .attempts
        .values()
        .filter_map(|attempt| Some((attempt.register, attempt.grant.as_ref()?.token)));
    let granted: std::collections::HashSet<_> = grants.collect();
    let mut unrest: BTreeMap<u32, Vec<Span>> = BTreeMap::new();
    let mut first_seen: BTreeMap<(u32, u64), Instant> = BTreeMap::new();
    for event in &history.events {
        let Kind::Seen {
            register,
            asked,
            token,
            ..
        } = event.kind
        else {
            continue;
        };
        if token == 0 || granted.contains(&(register, token)) {
            continue;
        }
        let since = *first_seen.entry((register, token)).or_insert(event.at);
        let span = Span {
            from: since,
            to: event.at,
        };
        let unrest = unrest
            .entry(register)
            .or_insert_with(|| history.unrest(register));
        if asked.since(since) > CLEARED && !unrest.iter().any(|trouble| trouble.overlaps(span)) {
            let message = format!(
                "lock {register} has had an entry with token {token}, which nobody got, for {:?}",
                asked.since(since)
            );
            return Err(Violation::new(message, since, event.at));
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
    use crate::event::Kind;

    fn seen(story: Story, millis: u64, token: u64) -> Story {
        story.then(
            millis,
            0,
            Kind::Seen {
                register: 0,
                asked: at(millis),
                token,
                expires: at(millis + 100),
            },
        )
    }

    #[test]
    fn an_entry_that_nobody_got_and_stays_breaks() {
        let left = |story| seen(seen(story, 20_000, 7), 21_001, 7);
        left(Story::default()).breaks(check, "token 7, which nobody got, for 1.001s");
        left(Story::default().holds(19_999, 1, 1, 7)).keeps(check);
        left(
            Story::default()
                .asks(18_000, 1, 1)
                .then(19_000, 0, Kind::Killed { process: 1 }),
        )
        .keeps(check);
        left(Story::default().outage(1_000, 2_000)).breaks(check, "nobody got");
        seen(seen(Story::default(), 20_000, 7), 21_000, 7).keeps(check);
    }
}
