use std::collections::BTreeMap;

use super::{Terms, Violation, returns};
use crate::{
    event::{Ask, Instant, Kind},
    history::History,
};

/// A guard never says that it is valid for longer than the store keeps its entry, nor while the
/// store has no entry of it.
pub(super) fn check(history: &History, _: &Terms) -> Result<(), Violation> {
    let mut claims = Claims::default();
    for event in &history.events {
        if let Kind::Seen {
            register,
            asked,
            token,
            expires,
        } = event.kind
        {
            claims.compare(history, (register, token, expires), asked, event.at)?;
        } else {
            claims.take(event.at, &event.kind);
        }
    }
    Ok(())
}

/// Statements of live guards: the time of each, and the time until which the guard is valid.
#[derive(Default)]
struct Claims(BTreeMap<Ask, Vec<(Instant, Instant)>>);

impl Claims {
    fn take(&mut self, at: Instant, kind: &Kind) {
        match kind {
            Kind::Granted {
                ask, valid_until, ..
            }
            | Kind::Held { ask, valid_until } => {
                self.0.entry(*ask).or_default().push((at, *valid_until));
            }
            Kind::Lost { ask, .. } | Kind::Ending { ask } => drop(self.0.remove(ask)),
            _ => {}
        }
    }

    fn compare(
        &mut self,
        history: &History,
        (register, token, expires): (u32, u64, Instant),
        asked: Instant,
        at: Instant,
    ) -> Result<(), Violation> {
        // A guard that nobody has ended, because its process is dead, is over at its deadline.
        self.0
            .retain(|_, said| said.iter().any(|(_, until)| *until > asked));
        for (ask, said) in &self.0 {
            let Some(attempt) = history
                .attempts
                .get(ask)
                .filter(|attempt| attempt.register == register)
            else {
                continue;
            };
            let Some(grant) = attempt
                .grant
                .as_ref()
                .filter(|grant| grant.removed.is_none_or(|removed| removed > at))
            else {
                continue;
            };
            // Dead processes cannot notice at all.
            let is_dead = history.killed.contains_key(&attempt.process);
            if returns::unnoticed(history, attempt)
                .is_some_and(|span| span.from <= at && (at <= span.to || is_dead))
            {
                continue;
            }
            // A statement from before the store was asked rests on what the store had done by then.
            let Some((since, until)) = said.iter().rfind(|(since, _)| *since <= asked) else {
                continue;
            };
            let (ends, entry) = if grant.token == token {
                (expires, "an entry that ended")
            } else {
                (at, "no entry, for it was another's,")
            };
            if *until > ends {
                let message = format!(
                    "{ask} of lock {register} was valid for {:?} longer, with {entry} by then",
                    until.since(ends)
                );
                return Err(Violation::new(message, *since, at));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use crate::event::{Ask, Kind};

    fn held() -> Story {
        Story::default().holds(0, 1, 1, 1)
    }

    /// Adds an answer of the store, which was asked a millisecond earlier.
    fn seen(story: Story, millis: u64, token: u64, expires: u64) -> Story {
        story.then(
            millis,
            0,
            Kind::Seen {
                register: 0,
                asked: at(millis - 1),
                token,
                expires: at(expires),
            },
        )
    }

    #[test]
    fn a_deadline_after_the_end_of_the_entry_breaks() {
        seen(held(), 100, 1, 10_000).keeps(check);
        seen(held(), 100, 1, 9_999).breaks(check, "valid for 1ms longer");
        let renewed = || {
            held().then(
                4_000,
                1,
                Kind::Held {
                    ask: Ask(1),
                    valid_until: at(14_000),
                },
            )
        };
        seen(renewed(), 4_100, 1, 14_000).keeps(check);
        seen(renewed(), 4_100, 1, 13_000).breaks(check, "valid for 1s longer");
        // The guard was renewed after the store was asked.
        seen(renewed(), 4_000, 1, 10_000).keeps(check);
    }

    #[test]
    fn a_valid_guard_without_an_entry_breaks() {
        seen(held(), 100, 0, 100).breaks(check, "no entry");
        seen(held(), 100, 2, 10_100).breaks(check, "no entry");
        seen(held(), 10_000, 2, 20_000).keeps(check);
        seen(held().releases(50, 1, 1), 100, 0, 100).keeps(check);
        seen(
            held().then(
                50,
                1,
                Kind::Lost {
                    ask: Ask(1),
                    why: String::new(),
                },
            ),
            100,
            0,
            100,
        )
        .keeps(check);
        seen(held().then(50, 0, Kind::Killed { process: 1 }), 100, 0, 100)
            .breaks(check, "no entry");
    }

    #[test]
    fn a_store_that_went_back_excuses_for_as_long_as_it_takes_to_notice() {
        let back = || {
            held()
                .then(
                    50,
                    1,
                    Kind::Held {
                        ask: Ask(1),
                        valid_until: at(20_000),
                    },
                )
                .goes_back(60, 100)
        };
        seen(back(), 5_433, 0, 5_433).keeps(check);
        seen(back(), 5_434, 0, 5_434).breaks(check, "no entry");
        seen(
            back().then(70, 0, Kind::Killed { process: 1 }),
            5_434,
            0,
            5_434,
        )
        .keeps(check);
    }

    #[test]
    fn a_removal_excuses_its_own_guard_from_then_on() {
        seen(held().removal(90, 1), 100, 0, 100).keeps(check);
        seen(held().removal(90, 2), 100, 0, 100).breaks(check, "no entry");
        seen(held().removal(200, 1), 100, 0, 100).breaks(check, "no entry");
    }
}
