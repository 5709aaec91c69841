use super::{Terms, Violation};
use crate::history::History;

/// Each grant of a lock has a larger token than every one before. A grant that had expired before
/// its caller saw it has no place in the order, but its token must still be its own. A store that
/// went back and forgets its tokens starts anew.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for (register, grants) in history.by_register() {
        let mut last: Option<(crate::event::Ask, u64, crate::event::Instant)> = None;
        let mut seen = std::collections::HashMap::new();
        let mut era = None;
        for (attempt, grant) in grants {
            let ask = attempt.ask;
            let own_era = history
                .returns
                .iter()
                .rfind(|span| terms.forgets_tokens && span.from < grant.at)
                .map(|span| span.from);
            if std::mem::replace(&mut era, own_era) != own_era {
                last = None;
                seen.clear();
            }
            if let Some((other, since)) = seen.insert(grant.token, (ask, grant.at)) {
                let message = format!(
                    "{other} and {ask} both have token {} of lock {register}",
                    grant.token
                );
                return Err(Violation::new(message, since, grant.at));
            }
            if grant.validity().is_none() {
                continue;
            }
            if let Some((other, token, since)) = last.filter(|(_, token, _)| *token >= grant.token)
            {
                let message = format!(
                    "{ask} has token {} of lock {register}, after {other} had {token}",
                    grant.token
                );
                return Err(Violation::new(message, since, grant.at));
            }
            last = Some((ask, grant.token, grant.at));
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

    #[test]
    fn a_token_that_goes_back_or_comes_twice_breaks() {
        let first = || Story::default().holds(0, 1, 1, 7).releases(5, 1, 1);
        first().holds(6, 2, 2, 8).keeps(check);
        first()
            .holds(6, 2, 2, 6)
            .breaks(check, "token 6 of lock 0, after #0.1 had 7");
        first().holds(6, 2, 2, 7).breaks(check, "both have token 7");
    }

    #[test]
    fn tokens_begin_anew_where_the_store_forgets_them() {
        let again = || {
            Story::default()
                .holds(0, 1, 1, 7)
                .releases(5, 1, 1)
                .goes_back(6, 7)
                .holds(8, 2, 2, 7)
        };
        again().keeps(check);
        again()
            .releases(9, 2, 2)
            .holds(10, 2, 3, 7)
            .breaks(check, "both have token 7");
        again().prompt().breaks(check, "both have token 7");
    }

    #[test]
    fn a_guard_that_was_born_lost_is_not_in_the_order() {
        let late = Kind::Granted {
            ask: Ask(2),
            token: 6,
            valid_until: at(20),
        };
        Story::default()
            .holds(0, 1, 1, 7)
            .releases(5, 1, 1)
            .asks(0, 2, 2)
            .then(20, 2, late)
            .keeps(check);
    }
}
