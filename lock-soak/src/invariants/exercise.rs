use polylock::migrate::Phase;

use super::{Terms, Violation};
use crate::{event::Kind, history::History};

/// Within this many TTLs, somebody holds a lock for longer than one TTL.
const RENEWED_WITHIN: u32 = 30;
/// Within this many TTLs, somebody does so when the lock cannot be renewed.
const LOST_WITHIN: u32 = 60;

/// Within this many TTLs of a membership, a plan comes to the last phase and back.
const MOVED_WITHIN: u32 = 20;

/// A run that is long enough has locks that were renewed past their first deadline and locks that
/// were lost: otherwise it proves nothing about either.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    let (Some(first), Some(last)) = (history.events.first(), history.events.last()) else {
        return Ok(());
    };
    let length = last.at.since(first.at);
    let moved = |phase| {
        history
            .events
            .iter()
            .any(|event| matches!(&event.kind, Kind::Moved { phase: to, .. } if *to == phase))
    };
    if let Some(missed) = Phase::ALL.into_iter().find(|phase| !moved(*phase))
        && terms
            .membership
            .is_some_and(|ttl| length >= ttl * MOVED_WITHIN)
    {
        let message = format!("no plan has come to the phase {missed} in {length:?}");
        return Err(Violation::new(message, last.at, last.at));
    }
    if terms.steady {
        return Ok(());
    }
    for (within, count, what) in [
        (RENEWED_WITHIN, history.renewed(), "renewed"),
        (LOST_WITHIN, history.lost(), "lost"),
    ] {
        if count == 0 && length >= terms.ttls.usual() * within {
            return Err(Violation::new(
                format!("no lock was {what} in {length:?}"),
                last.at,
                last.at,
            ));
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
    use crate::event::{Ask, Kind};

    fn held(millis: u64) -> Story {
        Story::default().holds(0, 1, 1, 1).then(
            millis,
            1,
            Kind::Held {
                ask: Ask(1),
                valid_until: at(millis + 10_000),
            },
        )
    }

    #[test]
    fn a_long_run_without_a_renewal_breaks() {
        held(9_000).asks(299_000, 1, 2).keeps(check);
        held(9_000)
            .asks(300_000, 1, 2)
            .breaks(check, "no lock was renewed");
        held(11_000).asks(300_000, 1, 2).keeps(check);
    }

    #[test]
    fn a_longer_one_without_a_loss_breaks() {
        held(11_000)
            .asks(600_000, 1, 2)
            .breaks(check, "no lock was lost");
        let lost = held(11_000).then(
            30_000,
            1,
            Kind::Lost {
                ask: Ask(1),
                why: "Expired".into(),
            },
        );
        lost.asks(600_000, 1, 2).keeps(check);
    }
}
