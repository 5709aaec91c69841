//! What a comparison of both stores tells, decided without I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use lock_core::{FencingToken, LockHolder, LockInfo, LockName, OwnerId};
use serde::Serialize;

use super::Plan;
use crate::{Phase, link};

/// What was read of both stores: the plan first, then the target's locks, the source's, and at last
/// the members and the plan's number again.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) plan: Plan,
    /// All members had followed the plan, and it had not changed by the end: all live guards were
    /// of its phase.
    pub(super) is_settled: bool,
    pub(super) source: Vec<LockInfo>,
    pub(super) target: Vec<LockInfo>,
    /// The labels of the live members, by the marks of their entries.
    pub(super) members: BTreeMap<String, String>,
    /// By name, the floor when the target's lock was granted; only where its token may be too high.
    pub(super) floors: BTreeMap<LockName, u64>,
}

/// Something that does not belong where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The lock.
    pub name: String,
    /// The kind.
    pub kind: FindingKind,
    /// The holder's owner id in the store that the kind is about.
    pub owner: String,
    /// The holder's token there; none from another library.
    pub token: Option<u64>,
    /// The label of the live member that it belongs to, if it does.
    pub member: Option<String>,
}

/// What is wrong with a lock that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Somebody who is no member holds it in the source. Nobody excludes them once members lock in
    /// the target alone.
    ForeignInSource,
    /// Somebody who is no member holds it in the target, or a member did that has died since.
    ForeignInTarget,
    /// A member that does not live any more held it in the source; it ends with its TTL.
    OrphanInSource,
    /// Its counterpart in the source is gone; it ends with its lease.
    OrphanInTarget,
    /// A member holds it in the source alone, although the target is free.
    Unpaired,
    /// The source's token is behind the target's, so the next one in the source may be too small.
    TokenBehind,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForeignInSource => "foreign in source",
            Self::ForeignInTarget => "foreign in target",
            Self::OrphanInSource => "orphan in source",
            Self::OrphanInTarget => "orphan in target",
            Self::Unpaired => "unpaired",
            Self::TokenBehind => "token behind",
        })
    }
}

/// What one look, compared with the one before, has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) in_source: usize,
    pub(super) in_target: usize,
    pub(super) pairs: usize,
    pub(super) findings: Vec<Finding>,
}

/// Compares one picture after the other.
///
/// Pictures are not of one instant. Who is no member is known by one look at the source, because a
/// member's entry is marked there; the rest counts only if two looks in a row find the same holder
/// in the same plight.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// What the last look has found, and the number of the plan's change at that time.
    before: (u64, BTreeSet<Finding>),
}

impl Comparison {
    pub(super) fn look(&mut self, picture: &Picture) -> Compared {
        let entries = Entries::new(picture);
        let found: BTreeSet<_> = entries.findings(picture).collect();
        let (epoch, before) = std::mem::take(&mut self.before);
        let is_seen_again =
            |finding: &&Finding| epoch == picture.plan.epoch && before.contains(finding);
        let findings = (found.iter())
            .filter(|it| it.kind == FindingKind::ForeignInSource || is_seen_again(it))
            .cloned()
            .collect();
        self.before = (picture.plan.epoch, found);
        Compared {
            in_source: entries.source.len(),
            in_target: entries.target.len(),
            pairs: entries.pairs(),
            findings,
        }
    }
}

/// A holder, and the mark that was in its metadata.
type Entry = (LockHolder, Option<OwnerId>);

struct Entries {
    source: HashMap<LockName, Entry>,
    target: HashMap<LockName, Entry>,
}

impl Entries {
    fn new(picture: &Picture) -> Self {
        let of = |infos: &[LockInfo]| {
            let entry = |info: &LockInfo| {
                let mut holder = info.holder().clone();
                let mark = link::strip_mark(&mut holder);
                (info.name.clone(), (holder, mark))
            };
            infos.iter().map(entry).collect()
        };
        Self {
            source: of(&picture.source),
            target: of(&picture.target),
        }
    }

    /// The target's entry that is one with this of the source.
    fn counterpart(&self, name: &LockName, owner: &OwnerId) -> Option<&LockHolder> {
        let (holder, of) = self.target.get(name)?;
        (of.as_ref() == Some(owner)).then_some(holder)
    }

    fn pairs(&self) -> usize {
        let is_pair = |(name, (holder, _)): &(&LockName, &Entry)| {
            self.counterpart(name, &holder.owner).is_some()
        };
        self.source.iter().filter(is_pair).count()
    }

    fn findings<'a>(&'a self, picture: &'a Picture) -> impl Iterator<Item = Finding> + 'a {
        let of_source =
            (self.source.iter()).filter_map(|(name, entry)| self.of_source(picture, name, entry));
        let of_target =
            (self.target.iter()).filter_map(|(name, entry)| self.of_target(picture, name, entry));
        of_source.chain(of_target)
    }

    fn of_source(
        &self,
        picture: &Picture,
        name: &LockName,
        (holder, mark): &Entry,
    ) -> Option<Finding> {
        let member = (mark.as_ref()).and_then(|mark| picture.members.get(mark.as_str()));
        let counterpart = self.counterpart(name, &holder.owner);
        let kind = match (mark, member, counterpart) {
            // Its link says that it is a member's, whatever has become of its mark.
            (_, _, Some(target)) if self.is_behind(picture, name, holder, target) => {
                FindingKind::TokenBehind
            }
            (None, _, None) if link::has_room(holder.metadata.as_deref()) => {
                FindingKind::ForeignInSource
            }
            (Some(_), None, _) => FindingKind::OrphanInSource,
            (_, _, None)
                if picture.is_settled
                    && picture.plan.phase != Phase::SourceOnly
                    && !self.target.contains_key(name) =>
            {
                FindingKind::Unpaired
            }
            _ => return None,
        };
        Some(finding(name, kind, holder, member))
    }

    fn of_target(
        &self,
        picture: &Picture,
        name: &LockName,
        (holder, of): &Entry,
    ) -> Option<Finding> {
        let kind = match of {
            Some(owner) => {
                let source = self.source.get(name).map(|(holder, _)| &holder.owner);
                (source != Some(owner)).then_some(FindingKind::OrphanInTarget)
            }
            None => {
                let is_expected = [Phase::TargetOnly, Phase::Final]
                    .into_iter()
                    .any(|phase| picture.plan.allows(phase));
                (!is_expected).then_some(FindingKind::ForeignInTarget)
            }
        };
        Some(finding(name, kind?, holder, None))
    }

    fn is_behind(
        &self,
        picture: &Picture,
        name: &LockName,
        source: &LockHolder,
        target: &LockHolder,
    ) -> bool {
        let (Some(source), Some(target)) = (source.token, target.token) else {
            return false;
        };
        let presented = |floor: &u64| target.as_u64().saturating_add(*floor);
        (picture.floors.get(name)).is_some_and(|floor| source.as_u64() < presented(floor))
    }
}

fn finding(
    name: &LockName,
    kind: FindingKind,
    holder: &LockHolder,
    member: Option<&String>,
) -> Finding {
    Finding {
        name: name.to_string(),
        kind,
        owner: holder.owner.to_string(),
        token: holder.token.map(FencingToken::as_u64),
        member: member.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: &str = "0123456789abcdef0123456789abcdef";

    fn held(owner: &str, token: Option<u64>, metadata: Option<String>) -> LockInfo {
        let mut holder = LockHolder::new(OwnerId::new(owner));
        holder.token = token.map(FencingToken::new);
        holder.metadata = metadata;
        LockInfo::new("orders/1".parse().unwrap(), holder)
    }

    fn by_member(owner: &str) -> LockInfo {
        let mark = link::encode_member(&OwnerId::new(MEMBER), Some("note"));
        held(owner, Some(100), mark)
    }

    fn linked_to(source: &str) -> LockInfo {
        let link = link::encode(&OwnerId::new(source), Some("note"));
        held("t", Some(7), Some(link))
    }

    fn picture(phase: Phase, source: Option<LockInfo>, target: Option<LockInfo>) -> Picture {
        let mut plan = Plan::new("orders/", 3);
        plan.phase = phase;
        plan.from = phase;
        Picture {
            plan,
            is_settled: true,
            source: source.into_iter().collect(),
            target: target.into_iter().collect(),
            members: [(MEMBER.to_owned(), "web-1".to_owned())].into(),
            floors: BTreeMap::new(),
        }
    }

    /// What the first look tells, and the second one of the same.
    fn told(picture: &Picture) -> [Option<FindingKind>; 2] {
        let mut comparison = Comparison::default();
        [(); 2].map(|()| {
            let findings = comparison.look(picture).findings;
            assert!(findings.len() <= 1, "{findings:?}");
            findings.first().map(|it| it.kind)
        })
    }

    #[test]
    fn members_are_never_foreign() {
        use Phase::{Dual, SourceOnly, TargetOnly};
        for (phase, source, target) in [
            (SourceOnly, Some(by_member("s")), None),
            (Dual, Some(by_member("s")), Some(linked_to("s"))),
            // The store has forgotten who it is.
            (Dual, Some(held("s", None, None)), Some(linked_to("s"))),
            // It waits for somebody.
            (Dual, Some(by_member("s")), Some(linked_to("other"))),
            (TargetOnly, None, Some(held("t", Some(7), None))),
        ] {
            let mut picture = picture(phase, source, target);
            for _ in ["alive", "dead"] {
                let mut comparison = Comparison::default();
                for _ in 0..2 {
                    let findings = comparison.look(&picture).findings;
                    let mut kinds = findings.iter().map(|it| it.kind);
                    let is_foreign = kinds.any(|it| it == FindingKind::ForeignInSource);
                    assert!(!is_foreign, "{phase}: {findings:?}");
                }
                picture.members.clear();
            }
        }
    }

    #[test]
    fn who_has_no_mark_is_foreign_at_first_sight() {
        let other_library = held("py", None, None);
        let other_url = held("plain", Some(9), Some("note".to_owned()));
        for phase in Phase::ALL {
            for foreign in [&other_library, &other_url] {
                let picture = picture(phase, Some(foreign.clone()), None);
                assert_eq!(told(&picture), [Some(FindingKind::ForeignInSource); 2]);
            }
        }
        // A member's mark had no room: what is to be found in both stores decides.
        let full = "x".repeat(lock_core::AcquireOptions::MAX_METADATA);
        let picture = picture(Phase::Dual, Some(held("s", Some(9), Some(full))), None);
        assert_eq!(told(&picture), [None, Some(FindingKind::Unpaired)]);
    }

    #[test]
    fn what_one_look_may_have_missed_needs_two() {
        let alone = picture(Phase::Dual, Some(by_member("s")), None);
        assert_eq!(told(&alone), [None, Some(FindingKind::Unpaired)]);
        let mut comparison = Comparison::default();
        comparison.look(&alone);
        let other = picture(Phase::Dual, Some(by_member("s2")), None);
        assert_eq!(comparison.look(&other).findings, [], "another holder");
        let mut changed = other.clone();
        changed.plan.epoch += 1;
        assert_eq!(comparison.look(&changed).findings, [], "another phase");
        let mut unsettled = alone.clone();
        unsettled.is_settled = false;
        assert_eq!(told(&unsettled), [None; 2], "it may be of the phase before");

        let mut dead = alone;
        dead.members.clear();
        assert_eq!(told(&dead), [None, Some(FindingKind::OrphanInSource)]);
        let orphan = picture(Phase::Dual, None, Some(linked_to("s")));
        assert_eq!(told(&orphan), [None, Some(FindingKind::OrphanInTarget)]);
        let stranger = picture(Phase::Dual, None, Some(held("t", Some(7), None)));
        assert_eq!(told(&stranger), [None, Some(FindingKind::ForeignInTarget)]);
    }

    #[test]
    fn a_token_that_is_behind_the_targets_is_found() {
        let mut pair = picture(Phase::Dual, Some(by_member("s")), Some(linked_to("s")));
        let name = pair.source[0].name.clone();
        pair.floors.insert(name.clone(), 93);
        assert_eq!(told(&pair), [None; 2]);
        pair.floors.insert(name, 94);
        assert_eq!(told(&pair), [None, Some(FindingKind::TokenBehind)]);
        let compared = Comparison::default().look(&pair);
        assert_eq!(
            (compared.in_source, compared.in_target, compared.pairs),
            (1, 1, 1)
        );
    }
}
