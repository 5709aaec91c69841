//! Finds the holder of a lock from each server's answer.

use std::time::Duration;

use lock_core::{LockHolder, LockInfo, OwnerId};

use crate::quorum::majority::Majority;

/// The holder, or that there is none, if it is certain while `open` servers have not answered.
pub(crate) fn common(
    majority: Majority,
    infos: &[Option<LockInfo>],
    open: usize,
) -> Option<Option<LockInfo>> {
    let (owner, count) = most_common(infos);
    let untracked = majority.servers() - infos.len();
    match owner {
        Some(owner) if count >= majority.needed() => {
            Some(Some(merged(infos, owner, majority.needed())))
        }
        _ if count + untracked < majority.needed() => Some(None),
        _ if open == 0 && count == 0 => Some(None),
        _ => None,
    }
}

/// Returns who may hold it together with servers that did not answer.
pub(crate) fn likely(infos: &[Option<LockInfo>]) -> Option<LockInfo> {
    let (owner, count) = most_common(infos);
    owner.map(|owner| merged(infos, owner, count))
}

fn most_common(infos: &[Option<LockInfo>]) -> (Option<&OwnerId>, usize) {
    let count = |owner: &OwnerId| {
        infos
            .iter()
            .flatten()
            .filter(|info| info.holder().owner == *owner)
            .count()
    };
    let owners = infos
        .iter()
        .flatten()
        .map(|info| &info.holder().owner)
        .map(|owner| (Some(owner), count(owner)));
    owners.max_by_key(|(_, count)| *count).unwrap_or((None, 0))
}

/// Returns what the servers say of one owner. Its lease lasts for as long as `needed` of them keep
/// it, and its token is the one that most of them have: the others have not heard of it.
fn merged(infos: &[Option<LockInfo>], owner: &OwnerId, needed: usize) -> LockInfo {
    let told: Vec<_> = infos
        .iter()
        .flatten()
        .filter(|info| info.holder().owner == *owner)
        .collect();
    let of_owner: Vec<_> = told.iter().map(|info| info.holder()).collect();
    let frequency = |token| of_owner.iter().filter(|info| info.token == token).count();
    let mut info = LockHolder::new(owner.clone());
    info.token = of_owner
        .iter()
        .map(|info| info.token)
        .filter(Option::is_some)
        .max_by_key(|token| (frequency(*token), *token))
        .flatten();
    info.since = of_owner.iter().filter_map(|info| info.since).min();
    info.metadata = of_owner.iter().find_map(|info| info.metadata.clone());
    let mut ends: Vec<_> = of_owner
        .iter()
        .map(|info| info.expires_in.unwrap_or(Duration::MAX))
        .collect();
    ends.sort_unstable_by(|a, b| b.cmp(a));
    info.expires_in = ends
        .get(needed.saturating_sub(1))
        .copied()
        .filter(|ends| *ends < Duration::MAX);
    LockInfo::new(told[0].name.clone(), info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lock_core::FencingToken;

    fn info(owner: &str, token: u64, millis: u64) -> Option<LockInfo> {
        let mut holder = LockHolder::new(OwnerId::new(owner));
        (holder.token, holder.expires_in) = (
            Some(FencingToken::new(token)),
            Some(Duration::from_millis(millis)),
        );
        Some(LockInfo::new("n".parse().unwrap(), holder))
    }

    #[test]
    fn a_majority_tells_who_holds_with_which_token_and_until_when() {
        let of_three = Majority::of(3);
        let held = common(of_three, &[info("a", 9, 100), info("a", 9, 300)], 1)
            .unwrap()
            .unwrap()
            .holders
            .remove(0);
        assert_eq!(
            (held.token, held.expires_in),
            (Some(FencingToken::new(9)), Some(Duration::from_millis(100)))
        );
        let held = common(
            of_three,
            &[info("a", 99, 100), info("a", 9, 300), info("a", 9, 200)],
            0,
        )
        .unwrap()
        .unwrap()
        .holders
        .remove(0);
        assert_eq!(
            (held.token, held.expires_in),
            (Some(FencingToken::new(9)), Some(Duration::from_millis(200)))
        );
    }

    #[test]
    fn nobody_holds_what_a_minority_says() {
        let of_three = Majority::of(3);
        assert_eq!(common(of_three, &[None, None], 1), Some(None));
        assert_eq!(
            common(of_three, &[info("a", 1, 1), None, None], 0),
            Some(None)
        );
        assert_eq!(
            common(of_three, &[info("a", 1, 1), info("b", 1, 1), None], 0),
            Some(None)
        );
        assert_eq!(
            common(of_three, &[info("a", 1, 1), None], 1),
            None,
            "the third decides"
        );
        assert_eq!(
            likely(&[info("a", 1, 1), None])
                .unwrap()
                .holder()
                .owner
                .as_str(),
            "a"
        );
    }
}
